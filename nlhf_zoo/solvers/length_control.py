r"""Win rates at equal length.

Judges like long answers. The model is a logistic regression of the outcome y of entrant i against j
on the difference of lengths d, with an intercept for each pair and one slope for all of them, since
a taste for length is the judge's and not the entrants':

.. math:: P(i > j \mid d) = \frac{1}{1 + e^{- (a_{ij} + b d / s)}}, \qquad s^2 = \text{mean } d^2,

and the length-controlled win rate is its value at d = 0. This is the idea of Dubois et al. (2024,
arXiv:2404.04475), without their difficulty of prompts and with one slope. The prior's r pseudo-ties
of a pair lie half at d = s and half at d = -s, so that intercepts and slope stay finite where an
entrant, or the longer answer, always won.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from nlhf_zoo.solvers.ratings import Array

_GRADIENT = 1e-9  # of the mean loss, at which the fit ends
_CONVERGED = 1e-5  # a fit that ends with more is none


@dataclass(frozen=True, slots=True)
class LengthControl:
    """A fit of the model.

    Args:
        rates: P(i > j) at equal length [N, N], 1/2 on the diagonal, NaN for pairs that never met.
        slope: b, logits for a difference of ``scale``; above 0 where the longer answer wins.
        scale: s, in the unit of the lengths.
    """

    rates: Array
    slope: float
    scale: float


def length_control(preference: Array, lengths: Array, prior: float = 1.0) -> LengthControl:
    """Fit the model.

    Args:
        preference: P(i > j) on each prompt [C, N, N], NaN where the two were not compared; graded
            ones enter as fractions.
        lengths: of each entrant's answer to each prompt [C, N].
        prior: r.

    Returns:
        the fit; its figures are NaN where nothing determines them: without a prior, if an
        intercept or the slope were infinite.
    """
    num = preference.shape[1]
    first, second = np.triu_indices(num, 1)
    outcome = preference[:, first, second]  # [C, pairs]
    prompts, pairs = (~np.isnan(outcome)).nonzero()
    rates = np.full((num, num), np.nan)
    np.fill_diagonal(rates, 0.5)
    if not len(pairs):
        return LengthControl(rates, np.nan, np.nan)
    y = outcome[prompts, pairs]
    d = (lengths[prompts, first[pairs]] - lengths[prompts, second[pairs]]).astype(np.float64)
    scale = float(np.sqrt(np.square(d).mean()))
    d = d / scale if scale else d
    met = np.unique(pairs)
    slot = np.searchsorted(met, pairs)
    fitted = _fit(y, d, slot, len(met), prior)
    i, j = first[met], second[met]
    rates[i, j], rates[j, i] = expit(fitted[:-1]), expit(-fitted[:-1])
    return LengthControl(rates, float(fitted[-1]) if scale else 0.0, scale)


def _fit(y: Array, d: Array, slot: NDArray[np.intp], num: int, prior: float) -> Array:
    """Intercepts of ``num`` pairs and the slope [num + 1]; NaN where there is no finite optimum."""
    total = len(y) + num * prior

    def loss(parameters: Array) -> tuple[float, Array]:
        intercept, slope = parameters[:-1], parameters[-1]
        logit = intercept[slot] + slope * d
        value = (np.logaddexp(0, logit) - y * logit).sum()
        miss = expit(logit) - y
        gradient = np.append(np.bincount(slot, miss, num), miss @ d)
        for at in (1.0, -1.0):  # r / 2 ties at each
            tied = intercept + slope * at
            value += prior / 2 * (np.logaddexp(0, tied) - tied / 2).sum()
            pull = prior / 2 * (expit(tied) - 0.5)
            gradient[:-1] += pull
            gradient[-1] += at * pull.sum()
        return value / total, gradient / total

    found = minimize(
        loss,
        np.zeros(num + 1),
        jac=True,
        method="BFGS",
        options={"gtol": _GRADIENT, "maxiter": 500},
    )
    size = np.abs(loss(found.x)[1]).max()
    bounded = size < _CONVERGED and (prior > 0 or np.abs(found.x).max() < 15)
    return found.x if bounded else np.full(num + 1, np.nan)
