r"""Who meets whom next, in a tournament that does not play all pairs on all prompts.

First all pairs meet on some prompts, so that each has a win rate and nothing is guessed of any.
Then come rounds: entrants stand in the order of their ratings, and from the top each that has no
partner yet takes, of the next few without one, the one that it met least. So comparisons go where
the order is open, and two that are far apart waste none. A round's pairs are compared on a few
prompts more.

All of it is a function of what was answered: a tournament that is killed and begins again with the
answers that it has kept meets the same pairs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.solvers.ratings import Array

Pair = tuple[int, int]

OPENING = 0.1  # share of the prompts on which all pairs meet first
PER_ROUND = 0.1  # share of the prompts on which a round's pairs meet
WINDOW = 4  # next in the order among which a partner is found


def opening_prompts(num_prompts: int) -> int:
    """On how many prompts all pairs meet first."""
    return math.ceil(OPENING * num_prompts)


def round_prompts(num_prompts: int) -> int:
    """On how many prompts a pair of a round meets."""
    return math.ceil(PER_ROUND * num_prompts)


def next_pairs(ratings: Array, met: NDArray[np.intp], most: int) -> list[Pair]:
    """The pairs of a round, lesser number first; none where all have met on all prompts.

    Args:
        ratings: of N entrants, higher is better.
        met: on how many prompts each two of them were compared [N, N].
        most: prompts that there are.
    """
    free = [int(entrant) for entrant in np.argsort(-ratings, kind="stable")]
    pairs: list[Pair] = []
    while free:
        one = free.pop(0)
        near = [other for other in free if met[one, other] < most][:WINDOW]
        if near:
            other = min(near, key=lambda each: met[one, each])
            free.remove(other)
            pairs.append((min(one, other), max(one, other)))
    return pairs


def intervals_part(ratings: Array, low: Array, high: Array) -> bool:
    """Whether no interval overlaps with that of the next entrant in the order of the ratings."""
    order = np.argsort(-ratings, kind="stable")
    return bool((low[order[:-1]] > high[order[1:]]).all())
