r"""A general preference that is fitted to answers about pairs, and how far its fits disagree.

With features :math:`\phi(y)` of single responses,

.. math:: P(y > y') = \sigma(\langle\theta, \psi(y, y')\rangle), \qquad
          \psi(y, y') = (\phi - \phi', \; \phi\phi'^T - \phi'\phi^T)

where of the antisymmetric matrix the entries above the diagonal are taken. Swapping the responses
negates :math:`\psi`, so that P(y > y') + P(y' > y) = 1 and P(y > y) = 1/2 by construction; the
second part is the bilinear form of a general preference (arXiv 2410.02197), which may be cyclic.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

_STEPS, _HALVINGS = 100, 40  # of Newton's method, and of one step of it
_PRECISE = 1e-9  # of the gradient, for each unit of weight
_ARMIJO = 1e-4  # share of the promised descent that a step must keep


def pair_features(first: Tensor, second: Tensor) -> Tensor:
    r"""The features :math:`\psi` of pairs.

    Args:
        first: features of the first responses [n, D].
        second: features of the second responses [n, D].

    Returns:
        [n, D (D + 1) / 2], negated where the responses are swapped.
    """
    above = torch.triu_indices(first.shape[-1], first.shape[-1], 1, device=first.device)
    row, column = above[0], above[1]
    product = first[:, row] * second[:, column] - second[:, row] * first[:, column]
    return torch.cat([first - second, product], -1)


def fit_members(
    features: Tensor, preference: Tensor, weight: Tensor, l2: float, centre: Tensor, start: Tensor
) -> Tensor:
    r"""Parameters of M fits to the same answers, by Newton's method.

    .. math:: \min_\theta \; \sum_i w_i \, H(p_i, \sigma(\langle\theta, \psi_i\rangle))
              + \tfrac{\lambda}{2} \|\theta - \theta_0\|^2

    with H the cross-entropy: strictly convex, so that the minimum does not depend on ``start``.
    Where nothing was answered a fit stays at its own :math:`\theta_0`: with these drawn from the
    prior, fits disagree there (randomised prior functions, arXiv 1806.03335), as those of a
    bootstrap alone, which all stay at 0, do not.

    Args:
        features: of n pairs, float64 [n, F].
        preference: P(first > second) as answered, float64 [n].
        weight: of the answers for each fit, float64 [M, n]; exponential draws of mean 1 are the
            Bayesian bootstrap.
        l2: :math:`\lambda`, above 0.
        centre: :math:`\theta_0` of each fit, float64 [M, F].
        start: parameters to begin with, float64 [M, F].

    Returns:
        float64 [M, F].

    Raises:
        RuntimeError: the numbers are such that no minimum is found, as features that are not
            finite.
    """

    def objective(parameters: Tensor) -> Tensor:
        log_odds = parameters @ features.mT
        loss = cross_entropy(log_odds, preference.expand_as(log_odds), reduction="none")
        return (weight * loss).sum(-1) + l2 / 2 * (parameters - centre).square().sum(-1)

    parameters = start.clone()
    identity = l2 * torch.eye(features.shape[-1], dtype=features.dtype, device=features.device)
    enough = _PRECISE * (1 + weight.sum(-1))
    for _ in range(_STEPS):
        chance = (parameters @ features.mT).sigmoid()
        gradient = (weight * (chance - preference)) @ features + l2 * (parameters - centre)
        if (gradient.abs().amax(-1) <= enough).all():
            return parameters
        curvature = weight * chance * (1 - chance)
        hessian = torch.einsum("mn,nf,ng->mfg", curvature, features, features) + identity
        step = torch.linalg.solve(hessian, gradient)
        parameters = _descend(objective, parameters, step, (gradient * step).sum(-1))
    raise RuntimeError(f"a preference model could not be fitted in {_STEPS} steps")


def _descend(
    objective: Callable[[Tensor], Tensor], parameters: Tensor, step: Tensor, promised: Tensor
) -> Tensor:
    """Each fit's step, halved until it descends."""
    before = objective(parameters)
    size = torch.ones_like(before)
    for _ in range(_HALVINGS):
        after = objective(parameters - size[:, None] * step)
        # Where nothing is left to descend, rounding decides: such a step may be taken.
        slack = torch.finfo(before.dtype).eps * before.abs()
        too_far = ~(after <= before - _ARMIJO * size * promised + 8 * slack)
        if not too_far.any():
            break
        size = torch.where(too_far, size / 2, size)
    return parameters - size[:, None] * step


def member_preferences(features: Tensor, parameters: Tensor) -> Tensor:
    """P(first > second) of n pairs as each of M fits has it, [M, n]."""
    return (parameters @ features.mT).sigmoid()


def most_disputed(preferences: Tensor, num: int) -> Tensor:
    """The pairs on which fits disagree most, by the standard deviation of their preferences.

    Args:
        preferences: of M fits for n pairs [M, n].
        num: how many pairs to name.

    Returns:
        their numbers in ascending order, long [num]; of equals the earlier ones.
    """
    spread = preferences.std(0, correction=0)
    return spread.argsort(descending=True, stable=True)[:num].sort().values
