r"""A step size that needs no tuning: mirror prox with an accept test.

With A the policy at a round's start, r_o = P o and c = A^(1 - s beta) mu^(s beta), both half steps

    h = c exp(s r_A) / Z            n = c exp(s r_h) / Z

obey the identity

    KL(pi* || n) + s beta KL(h || pi*) = (1 - s beta) KL(pi* || A) + excess
    excess = s <r_h - r_A, n - h> - (1 - s beta) KL(h || A) - KL(n || h)

so that a round whose excess is at most 0 contracts by 1 - s beta. All of it is known once h is
paid for: n is accepted then, and s grows to 1.2 s; otherwise the round is taken again with s / 2,
which costs one product, as r_A is remembered. By Pinsker's inequality no step of

    s <= 2 (sqrt(1 + beta^2) - beta) = 2 / (sqrt(1 + beta^2) + beta)

has a positive excess, whatever the game; it is larger than the default step 2 / (1 + 2 beta). The
proofs are in docs/adaptive_step.md. The method is ours, derived for this package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from nlhf_zoo.algorithms.checks import positive
from nlhf_zoo.records import ProximalStep

Eta = float | None | Literal["adaptive"]

_GROWTH, _SHRINKAGE = 1.2, 0.5
_LARGEST_WEIGHT = 0.9  # of the reference in a step's centre, s beta, unless the default's is more


class AdaptiveAlgorithm(Protocol):
    """What a ``PolicyOptimizer`` offers that declares itself adaptive.

    Its plan has two steps from one centre: the first, against the player of the round's start,
    writes the half step, and the second, against the half step, writes the policy.
    """

    def steps(
        self, beta: float, round: int, step_size: float | None = None
    ) -> Sequence[ProximalStep]:
        """The plan of one round with this step size."""

    def accepts(
        self,
        step_size: Tensor,
        beta: float,
        old: Tensor,
        half: Tensor,
        new: Tensor,
        products: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Which games take the step, bool [C]; as ``accepts`` of this module."""


def as_adaptive(algorithm: object) -> AdaptiveAlgorithm:
    """An algorithm that has declared itself adaptive, as what it is."""
    return cast(AdaptiveAlgorithm, algorithm)


def eta_or_adaptive(value: Eta) -> Eta:
    """The value, if it is None, "adaptive" or a finite number above 0."""
    if isinstance(value, str):
        if value != "adaptive":
            raise ValueError(f'eta must be a number, null or "adaptive", but it is "{value}"')
        return value
    return positive(value, "eta")


def safe_step_size(beta: float) -> float:
    """The largest step size that every game accepts, and that the reference's weight allows."""
    return min(2 / (math.sqrt(1 + beta * beta) + beta), _largest_step_size(beta))


def _largest_step_size(beta: float) -> float:
    return max(_LARGEST_WEIGHT / beta, 2 / (1 + 2 * beta))


def excess(
    step_size: Tensor,
    beta: float,
    old: Tensor,
    half: Tensor,
    new: Tensor,
    products: tuple[Tensor, Tensor],
) -> Tensor:
    """By how much a round may miss the contraction 1 - s beta [C]; at most 0 where it does not.

    Args:
        step_size: s of each game [C].
        beta: temperature of the game.
        old: log-probabilities of A, the policy at the round's start [C, N]; -inf where absent.
        half: those of h.
        new: those of n.
        products: P A and P h, each up to a constant [C, N].
    """
    of_old, of_half = products
    gain = ((of_half - of_old) * (new.exp() - half.exp())).sum(-1)
    return (
        step_size * gain - (1 - step_size * beta) * _divergence(half, old) - _divergence(new, half)
    )


def accepts(
    step_size: Tensor,
    beta: float,
    old: Tensor,
    half: Tensor,
    new: Tensor,
    products: tuple[Tensor, Tensor],
) -> Tensor:
    """Which games take the step, bool [C]; arguments as for ``excess``.

    Up to the safe step size the answer is known, and rounding must not give another.
    """
    known = step_size <= safe_step_size(beta)
    return known | (excess(step_size, beta, old, half, new, products) <= 0)


def next_step_size(step_size: Tensor, beta: float, accepted: Tensor) -> Tensor:
    """The step size of the next round [C], larger where the step was accepted and else smaller."""
    new = torch.where(accepted, _GROWTH * step_size, _SHRINKAGE * step_size)
    return new.clamp(safe_step_size(beta), _largest_step_size(beta))


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL of distributions given by log-probabilities, -inf where absent in both [C].

    The sum of p (d + exp(-d) - 1), d = log(p / q), whose terms are not negative: small divergences
    keep their digits.
    """
    distance = (first - second).masked_fill(first == -torch.inf, 0.0)
    near = distance.clamp(min=-1.0)  # beyond it exp(-d) may be too large for a number, and q is not
    terms = torch.where(
        distance < -1,
        first.exp() * (distance - 1) + second.exp(),
        first.exp() * (near + torch.expm1(-near)),
    )
    return terms.sum(-1)
