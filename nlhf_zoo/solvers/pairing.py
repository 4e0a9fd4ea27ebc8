r"""Who meets whom next, in a tournament that does not play all pairs on all prompts.

First all pairs meet on some prompts, so that each has a win rate and nothing is guessed of any.
Then come rounds: entrants stand in the order of their ratings, and from the top each that has no
partner yet takes, of the next few without one, the one that it met least. So comparisons go where
the order is open, and two that are far apart waste none. A round's pairs are compared on a few
prompts more.

Where preferences are cycles there is no order to be found, but a Nash average: so every second
round is one of *contenders*, entrants whose payoff against the present Nash average is no further
below 1/2 than its standard error. Of these, the pairs meet that have met least.

All of it is a function of what was answered: a tournament that is killed and begins again with the
answers that it has kept meets the same pairs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.solvers.nash_average import nash_average
from nlhf_zoo.solvers.ratings import Array, pair_win_rates

Pair = tuple[int, int]

OPENING = 0.1  # share of the prompts on which all pairs meet first
PER_ROUND = 0.1  # share of the prompts on which a round's pairs meet
WINDOW = 6  # next in the order among which a partner is found


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


def contending_pairs(rates: Array, average: Array, met: NDArray[np.intp], most: int) -> list[Pair]:
    """The pairs of a round of contenders, lesser number first; none where these are all known.

    Args:
        rates: win rates [N, N], none of them NaN.
        average: the Nash average of these [N].
        met: on how many prompts each two of them were compared [N, N].
        most: prompts that there are.
    """
    payoff = rates @ average
    spread = rates * (1 - rates) / (met + 1)
    error = np.sqrt(spread @ average**2)
    among = np.flatnonzero(payoff >= 0.5 - error)
    pairs = [(int(i), int(j)) for i in among for j in among if i < j and met[i, j] < most]
    # Of those that met as often, the ones that are played most.
    pairs.sort(key=lambda pair: (met[pair], -(average[pair[0]] + average[pair[1]]), pair))
    return pairs[: len(rates) // 2]


def round_pairs(
    number: int, ratings: Array, wins: Array, prior: float, met: NDArray[np.intp], most: int
) -> list[Pair]:
    """The pairs of round ``number``: of neighbours, and every second one of contenders.

    Args:
        number: of the round, from 0.
        ratings: of N entrants, higher is better.
        wins: w + t/2 [N, N].
        prior: pseudo-ties of each pair, above 0.
        met: on how many prompts each two of them were compared [N, N].
        most: prompts that there are.
    """
    if number % 2:
        rates = pair_win_rates(wins, prior)
        pairs = contending_pairs(rates, nash_average(rates).probability, met, most)
        if pairs:
            return pairs
    return next_pairs(ratings, met, most)


def intervals_part(ratings: Array, low: Array, high: Array) -> bool:
    """Whether no interval overlaps with that of the next entrant in the order of the ratings."""
    order = np.argsort(-ratings, kind="stable")
    return bool((low[order[:-1]] > high[order[1:]]).all())
