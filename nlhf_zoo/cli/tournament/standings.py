"""What a tournament tells of each entrant, and of all of them together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nlhf_zoo.cli.tournament.judging import Judge
from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers.length_control import LengthControl, length_control
from nlhf_zoo.solvers.nash_average import CloneEffect, NashAverage, clone_effect, nash_average
from nlhf_zoo.solvers.preference import cyclic_triples
from nlhf_zoo.solvers.ratings import (
    Array,
    bradley_terry,
    bradley_terry_interval,
    elo,
    pair_win_rates,
    percentile_interval,
    resampled_wins,
    total_wins,
    unbeaten,
    wilson_interval,
)

_RESAMPLES = 1000
_AVERAGED = 200  # of these, whose Nash averages are computed: a linear programme each


@dataclass(frozen=True, slots=True)
class Pairs:
    """Figures of pairs, [N, N] each; NaN on the diagonal and where two have not met."""

    wins: Array  # w + t/2
    judged: Array  # valid judgements
    ties: Array
    invalid: Array
    rate: Array
    wilson: tuple[Array, Array]
    bootstrap: tuple[Array, Array]


@dataclass(frozen=True, slots=True)
class Standings:
    """Figures of N entrants, in the order in which they were named."""

    names: list[str]
    pairs: Pairs
    rating: Array  # Bradley-Terry, logits of mean 0 [N]
    rating_interval: tuple[Array, Array]
    elo: Array
    rate: Array  # mean win rate over the others
    rate_interval: tuple[Array, Array]
    nash: NashAverage
    nash_played: Array  # share of resamples in which the Nash average plays an entrant
    clones: list[CloneEffect]
    controlled: LengthControl
    controlled_rate: Array  # mean over the others at equal length
    length: Array  # mean characters
    cycles: tuple[int, int]  # cyclic triples, and all triples with winners

    @property
    def order(self) -> list[int]:
        """Entrants by their rating, the best first."""
        return [int(entrant) for entrant in np.argsort(-self.rating, kind="stable")]


def standings(judge: Judge, prior: float, seed: int) -> Standings:
    """All figures of what was judged.

    Raises:
        UserError: nobody has beaten an entrant, and there is no prior.
    """
    field, preference = judge.field, judge.preference()
    wins = total_wins(preference)
    refuse_unbeaten(field.names, wins, prior)
    resampled = resampled_wins(preference, _RESAMPLES, seed)
    rating = bradley_terry(wins, prior)
    pairs = _pairs(judge, preference, resampled)
    rate = mean_rates(pairs.rate)
    again = percentile_interval(mean_rates(_off_diagonal(pair_win_rates(resampled))))
    total = wins + wins.T
    independent = wilson_interval(wins.sum(1), total.sum(1))
    smoothed = _known(pair_win_rates(wins, prior))
    controlled = length_control(preference, field.lengths, prior)
    cycles, triples = cyclic_triples(torch.from_numpy(smoothed), torch.from_numpy(total > 0))
    return Standings(
        names=field.names,
        pairs=pairs,
        rating=rating,
        rating_interval=bradley_terry_interval(wins, resampled, prior, rating),
        elo=elo(wins, prior),
        rate=rate,
        rate_interval=(np.fmin(again[0], independent[0]), np.fmax(again[1], independent[1])),
        nash=nash_average(smoothed),
        nash_played=_played(resampled[:_AVERAGED], prior),
        clones=[clone_effect(wins, entrant, prior) for entrant in range(len(wins))],
        controlled=controlled,
        controlled_rate=mean_rates(_off_diagonal(controlled.rates)),
        length=field.lengths.mean(0),
        cycles=(round(float(cycles)), round(float(triples))),
    )


def refuse_unbeaten(names: list[str], wins: Array, prior: float) -> None:
    """Refuse ratings that would be infinite.

    Raises:
        UserError: some entrants took every point from all others, or two were not compared, and
            there is no prior.
    """
    unknown = np.triu(wins + wins.T + prior == 0, 1)
    if unknown.any():
        one, other = (names[entrant] for entrant in np.argwhere(unknown)[0])
        raise UserError(
            f"no valid answer compares {one!r} with {other!r}: give a --prior above 0; what was "
            "judged is kept"
        )
    if best := unbeaten(wins, prior):
        who = ", ".join(repr(names[entrant]) for entrant in best)
        raise UserError(
            f"--prior 0 gives no finite ratings, for no other entrant took a point from {who}: "
            "give a prior above 0; what was judged is kept"
        )


def mean_rates(rates: Array) -> Array:
    """Mean win rate over the others [..., N]; NaN where there are none."""
    known = ~np.isnan(rates)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(known, rates, 0.0).sum(-1) / known.sum(-1)
    return mean


def _off_diagonal(rates: Array) -> Array:
    rates = rates.copy()
    rates[..., range(rates.shape[-1]), range(rates.shape[-1])] = np.nan
    return rates


def _known(rates: Array) -> Array:
    """1/2 for pairs of which a resample knows nothing, not even by a prior."""
    return np.nan_to_num(rates, nan=0.5)


def _pairs(judge: Judge, preference: Array, resampled: Array) -> Pairs:
    wins = total_wins(preference)
    judged = wins + wins.T
    rounded: NDArray[np.float64] = np.round(judged)  # a sum of P and 1 - P for each
    ties = (preference == 0.5).sum(0).astype(float)
    np.fill_diagonal(ties, 0.0)
    wilson = wilson_interval(wins, rounded)
    bootstrap = percentile_interval(_off_diagonal(pair_win_rates(resampled)))
    return Pairs(
        wins=wins,
        judged=rounded,
        ties=ties,
        invalid=judge.met() - rounded,
        rate=_off_diagonal(pair_win_rates(wins)),
        wilson=(_off_diagonal(wilson[0]), _off_diagonal(wilson[1])),
        bootstrap=bootstrap,
    )


def _played(resampled: Array, prior: float) -> Array:
    averages = [nash_average(_known(pair_win_rates(wins, prior))) for wins in resampled]
    played: Array = np.mean([average.probability > 0 for average in averages], axis=0)
    return played
