r"""The Nash average of entrants (Balduzzi et al. 2018, arXiv:1806.02643), and what a clone changes.

It is the equilibrium of the game in which two players name an entrant each and win with its win
rate against the other's, of those the one of least KL to uniform (`lotteries`). A copy of an
entrant is no news to it: where the equilibrium is unique the copies share the probability of the
original, and all others keep theirs. Elo and Bradley-Terry are moved by copies: whoever beats the
copied one rises.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nlhf_zoo.solvers.lotteries import lottery_intervals
from nlhf_zoo.solvers.nash import unregularised_nash
from nlhf_zoo.solvers.ratings import Array, elo, pair_win_rates, with_clone


@dataclass(frozen=True, slots=True)
class NashAverage:
    """An equilibrium between N entrants.

    Args:
        probability: of each entrant [N], exactly 0 where it is never played.
        exploitability: the certificate, the most that an entrant wins against it, minus 1/2.
        unique: whether it is the only equilibrium.
        low: the least probability of each entrant in any equilibrium [N].
        high: the largest [N].
    """

    probability: Array
    exploitability: float
    unique: bool
    low: Array
    high: Array


def nash_average(rates: Array) -> NashAverage:
    """The Nash average of win rates [N, N] as `pair_win_rates` gives them, none of them NaN."""
    solution = unregularised_nash(torch.from_numpy(rates))
    probability: Array = solution.log_policy.exp().numpy()
    unique = bool(solution.unique)
    low = high = probability
    if not unique:
        low, high = lottery_intervals((rates - rates.T) / 2)
    return NashAverage(probability, float(solution.exploitability), unique, low, high)


@dataclass(frozen=True, slots=True)
class CloneEffect:
    """The largest change of any other entrant, were there a clone of one.

    Args:
        nash_average: of its probability.
        elo: of its rating, where the mean rating of all but the clone stays.
    """

    nash_average: float
    elo: float


def clone_effect(wins: Array, entrant: int, prior: float = 1.0) -> CloneEffect:
    """What a clone changes that ties with its original, as often as any pair met at most."""
    cloned = with_clone(wins, entrant, float((wins + wins.T).max()))
    others = np.arange(len(wins)) != entrant
    averages = [nash_average(pair_win_rates(w, prior)).probability for w in (wins, cloned)]
    ratings = [elo(w, prior)[: len(wins)] for w in (wins, cloned)]
    played = np.abs(averages[0] - averages[1][: len(wins)])[others]
    moved = np.abs(ratings[0] - ratings[0].mean() - ratings[1] + ratings[1].mean())[others]
    return CloneEffect(float(played.max()), float(moved.max()))
