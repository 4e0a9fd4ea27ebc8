r"""Ratings of entrants that were compared with each other: win rates, Bradley-Terry and Elo.

Letters: C prompts, N entrants, R resamples. ``preference`` [C, N, N] holds P(i > j) on each prompt,
a probability, 1/2 for a tie, and NaN where the two were not compared or the answer was invalid;
P(i > j) + P(j > i) = 1. A graded preference counts as a fraction of a win: 0.7 is seven tenths of
one for i and three tenths for j. ``wins`` [N, N] are the sums over prompts, w + t/2 in each entry,
so the number of comparisons of a pair is ``wins + wins.T``.

``prior`` is r pseudo-ties that each pair has besides, those that never met too, as in `read_votes`:

.. math:: P(i > j) = \frac{w + t/2 + r/2}{w + l + t + r}.

All of it is float64 NumPy. Errors over prompts come from resampling whole prompts, with all that
was compared on them, for entrants that stumble over a prompt do so together.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.errors import UserError

Array = NDArray[np.float64]

LEVEL = 0.95  # of all intervals
_QUANTILE = 1.959963984540054  # of the standard normal, at (1 + LEVEL) / 2
_RESAMPLES = 1000
_MOST_ITERATIONS = 100_000  # of choix; some tens are the rule
_ELO_MEAN, _ELO_SCALE = 1000.0, 400 / math.log(10)


def total_wins(preference: Array) -> Array:
    """Wins and half the ties of each entrant against each other one [N, N]."""
    wins: Array = np.nansum(preference, axis=0)
    np.fill_diagonal(wins, 0.0)
    return wins


def resampled_wins(preference: Array, num: int = _RESAMPLES, seed: int = 0) -> Array:
    """Wins [R, N, N] of ``num`` resamples of C prompts, each drawn with replacement."""
    prompts, entrants, _ = preference.shape
    drawn = np.random.default_rng(seed).multinomial(prompts, [1 / prompts] * prompts, size=num)
    table = np.nan_to_num(preference, nan=0.0)
    table[:, range(entrants), range(entrants)] = 0.0
    wins: Array = (drawn @ table.reshape(prompts, -1)).reshape(num, entrants, entrants)
    return wins


# ---- win rates -----------------------------------------------------------------------------------


def pair_win_rates(wins: Array, prior: float = 0.0) -> Array:
    """P(i > j) [..., N, N] with pseudo-ties; 1/2 on the diagonal, NaN for a pair without either."""
    total = wins + wins.swapaxes(-1, -2) + prior
    with np.errstate(invalid="ignore"):
        rates = np.where(total > 0, (wins + prior / 2) / total, np.nan)
    rates[..., range(wins.shape[-1]), range(wins.shape[-1])] = 0.5
    return rates


def wilson_interval(wins: Array, total: Array) -> tuple[Array, Array]:
    r"""Wilson's interval of a share at `LEVEL`, of ``total`` independent comparisons each.

    .. math:: \frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4 n^2}}{1 + z^2 / n}

    (Wilson 1927). A fraction of a win varies less than a win or a loss of the same mean, so the
    interval is too wide for graded preferences, never too narrow. [0, 1] without a comparison.
    """
    z = _QUANTILE
    num = np.maximum(total, 1e-300)
    share = np.where(total > 0, wins / num, 0.5)
    spread = z * np.sqrt(share * (1 - share) * num + z**2 / 4)
    low, high = ((share * num + z**2 / 2 + sign * spread) / (num + z**2) for sign in (-1, 1))
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


def percentile_interval(values: Array) -> tuple[Array, Array]:
    """The middle `LEVEL` of resampled figures [R, ...]; NaN are resamples that have none."""
    tail = 50 * (1 - LEVEL)
    known = ~np.isnan(values).all(0)
    low, high = np.full((2, *values.shape[1:]), np.nan)
    low[known], high[known] = np.nanpercentile(values[:, known], [tail, 100 - tail], axis=0)
    return low, high


# ---- Bradley-Terry -------------------------------------------------------------------------------


def unbeaten(wins: Array, prior: float = 0.0) -> list[int]:
    """Entrants from which no other has ever taken a point; none where ratings are finite.

    Bradley-Terry has finite ratings where each entrant has taken points from each other one, if
    need be through others (Ford 1957). Where it has not, there is such a group.
    """
    from scipy.sparse.csgraph import connected_components

    took: NDArray[np.bool_] = wins + prior > 0
    num, group = connected_components(took, connection="strong")
    if num == 1:
        return []
    for own in range(num):
        inside = group == own
        if not took[np.ix_(~inside, inside)].any():
            return [int(entrant) for entrant in np.flatnonzero(inside)]
    raise AssertionError("of the groups of a graph one has no way in")


def bradley_terry(wins: Array, prior: float = 1.0, start: Array | None = None) -> Array:
    r"""Ratings [N] of mean 0 under which the wins are likeliest, in logits.

    .. math:: P(i > j) = \frac{1}{1 + e^{- (\theta_i - \theta_j)}}

    by the spectral iteration of Maystre and Grossglauser (2015), `choix.ilsr_pairwise_dense`, on
    w + t/2 + r/2 for each pair.

    Args:
        wins: w + t/2 [N, N].
        prior: r.
        start: ratings [N] to begin with, such as those of a few comparisons less.

    Raises:
        UserError: there are no finite ratings, since somebody was never beaten and there is no
            prior.
    """
    import choix  # late: nothing else here needs it

    counts = wins + prior / 2
    np.fill_diagonal(counts, 0.0)
    try:
        ratings: Array = choix.ilsr_pairwise_dense(
            counts, initial_params=start, max_iter=_MOST_ITERATIONS
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            "Bradley-Terry has no finite ratings without a prior, for some entrants took every "
            "point from the others: give a prior above 0"
        ) from error
    ratings -= ratings.mean()
    return ratings


def bradley_terry_interval(
    wins: Array, resampled: Array, prior: float = 1.0, ratings: Array | None = None
) -> tuple[Array, Array]:
    r"""Intervals of `bradley_terry`, both ends [N]: the wider of two at each end.

    The resamples of prompts know what entrants have in common, but of one that has won everywhere
    they tell nothing: all of them are alike. The curvature of the likelihood, prior included, has a
    width there, too, for independent comparisons:

    .. math:: Cov(\theta) = L^+, \quad L_{ij} = - (n_{ij} + r) p_{ij} (1 - p_{ij}) \text{ off the
              diagonal, rows of sum 0}.

    Args:
        wins: w + t/2 [N, N].
        resampled: those of resamples [R, N, N]; one without finite ratings counts as infinitely far
            off on both sides.
        prior: r.
        ratings: those of ``wins``, if they are known.
    """
    ratings = bradley_terry(wins, prior) if ratings is None else ratings
    half = _QUANTILE * np.sqrt(np.maximum(rating_covariance(wins, prior, ratings).diagonal(), 0.0))
    low, high = ratings - half, ratings + half
    if len(resampled):
        again = [_or_none(one, prior, ratings) for one in resampled]
        ends = [[-np.inf, np.inf] if one is None else [one, one] for one in again]
        several = np.array([np.broadcast_arrays(*pair, ratings)[:2] for pair in ends])
        tail = (1 - LEVEL) / 2
        low = np.fmin(low, np.quantile(several[:, 0], tail, axis=0, method="lower"))
        high = np.fmax(high, np.quantile(several[:, 1], 1 - tail, axis=0, method="higher"))
    return low, high


def rating_covariance(wins: Array, prior: float, ratings: Array) -> Array:
    """Covariance [N, N] of ratings of mean 0, by the curvature of the likelihood."""
    chance = 1 / (1 + np.exp(ratings[None] - ratings[:, None]))
    weight = (wins + wins.T + prior) * chance * (1 - chance)
    np.fill_diagonal(weight, 0.0)
    laplacian = np.diag(weight.sum(1)) - weight
    covariance: Array = np.linalg.pinv(laplacian, hermitian=True).astype(np.float64)
    return covariance


def _or_none(wins: Array, prior: float, start: Array) -> Array | None:
    try:
        return bradley_terry(wins, prior, start)
    except UserError:
        return None


# ---- Elo -----------------------------------------------------------------------------------------


def elo(wins: Array, prior: float = 1.0) -> Array:
    r"""Elo ratings [N] of mean 1000 that the games move neither up nor down, in no order at all.

    .. math:: \sum_j \left( P(i > j) - \frac{1}{1 + 10^{(R_j - R_i) / 400}} \right) = 0

    over the j that i met, P with pseudo-ties: the point to which Elo's updates tend where all pairs
    play equally often, whatever the order (Balduzzi et al. 2018, arXiv:1806.02643, section 2).
    Where each pair met equally often these are Bradley-Terry's ratings on another scale; else
    Bradley-Terry gives a pair that met more often more weight. NaN where there are none.
    """
    met = wins + wins.T > 0
    rates = np.where(met, pair_win_rates(wins, prior), 0.0)
    try:
        return _ELO_MEAN + _ELO_SCALE * bradley_terry(rates, prior=0.0)
    except UserError:
        return np.full(len(wins), np.nan)


def with_clone(wins: Array, entrant: int, ties: float) -> Array:
    """Wins [N + 1, N + 1] if a clone of an entrant had played too, tied with it ``ties`` times."""
    place = [*range(len(wins)), entrant]
    wins = wins[np.ix_(place, place)].copy()
    wins[entrant, -1] = wins[-1, entrant] = ties / 2
    return wins
