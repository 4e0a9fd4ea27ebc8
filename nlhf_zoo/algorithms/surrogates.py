"""Surrogates: the losses by whose gradient a proximal step is realised.

Each is a function (step, batch) -> [B], and can be given to any algorithm that it fits:

    --model.algorithm.surrogate nlhf_zoo.algorithms.surrogates.proximal_regression

On a rollout that serves several gradient steps, the centre's, the opponents' and the sampler's
`policy` is the policy as it was when the rollout was drawn. Then not every loss takes the step:
each declares what it may learn from, and one that declares nothing needs fresh rollouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from nlhf_zoo import losses
from nlhf_zoo.records import Batch, ProximalStep

# What a loss may learn from: rollouts of any law; those of an earlier policy, by the importance
# ratio; or fresh ones alone.
Reuse = Literal["any", "ratio", "fresh"]
_Loss = TypeVar("_Loss", bound=Callable[..., Tensor])


def learns_from(reuse: Reuse) -> Callable[[_Loss], _Loss]:
    """Declare what a surrogate may learn from."""

    def declared(surrogate: _Loss) -> _Loss:
        surrogate.reuse = reuse  # type: ignore[attr-defined]
        return surrogate

    return declared


def reuse_of(surrogate: Any) -> Reuse:
    """What a surrogate declares; fresh rollouts where it declares nothing."""
    declared: Reuse = getattr(surrogate, "reuse", "fresh")
    return declared


@learns_from("any")
def proximal_regression(step: ProximalStep, batch: Batch) -> Tensor:
    r"""Regression on pairs, (D log pi - D log c - s D q)^2.

    Its minimiser is the proximal step itself, for any sampler with full support.
    """
    residual = batch.log_prob - batch.centre_log_prob - step.step_size * batch.payoff
    return losses.pair_regression(residual, batch.weight, batch.enumerated)


def ipo_regression(step: ProximalStep, batch: Batch) -> Tensor:
    r"""Online IPO's regression, (D log(pi/mu) - D q / beta)^2, arXiv 2403.08635.

    Its minimiser is the best response mu exp(q / beta), and not the proximal step, so that it wants
    a fresh rollout for each gradient step.

    At pi = pi_t its gradient is 1 / (s beta) times that of ``proximal_regression`` with the centre
    pi_t^(1 - s beta) mu^(s beta): the step size then lies in the learning rate alone. With samples
    and K = 2 in self-play it is IPO 2, (D log(pi/mu) - (P(y > y') - 1/2) / beta)^2; with opponents
    of their own it is IPO 1.
    """
    residual = batch.log_prob - batch.reference_log_prob - batch.payoff / batch.beta
    return losses.pair_regression(residual, batch.weight, batch.enumerated)


@learns_from("ratio")
def policy_gradient(step: ProximalStep, batch: Batch) -> Tensor:
    r"""Policy gradient of the step's objective over s: A = q - (log pi - log c) / s - baseline.

    With c = pi_t^(1 - s beta) mu^(s beta), at pi = pi_t, A is q - beta log(pi/mu), as Nash-MD-PG
    has it (arXiv 2312.00886); with Nash-MP's centre it is

        q - beta log(pi/mu) - (beta/eta) log(pi/anchor)

    On a rollout that serves several gradient steps, responses of an earlier policy are weighted by
    r = pi_theta / pi_sampler, and what is minimised is PPO's bound -min(r A, clip(r) A), arXiv
    1707.06347; unclipped, its gradient is the policy gradient at pi_theta.

    Raises:
        ValueError: the responses do not come from the policy itself.
    """
    return _policy_gradient(step, batch, length=None)


@learns_from("ratio")
def mean_token_policy_gradient(step: ProximalStep, batch: Batch) -> Tensor:
    r"""The policy gradient, in which each response counts by the mean over its tokens, as in GRPO.

        - E_y [ A(y) log pi(y) / |y| ]

    It is the gradient of no expected value, for 1/|y| is no part of A; A is that of
    ``policy_gradient``, so that both are zero where all A are.

    Raises:
        ValueError: the responses do not come from the policy itself.
    """
    return _policy_gradient(step, batch, batch.length)


def _policy_gradient(step: ProximalStep, batch: Batch, length: Tensor | None) -> Tensor:
    if not step.draws_policy:
        raise ValueError(
            "the policy gradient needs responses of the policy itself, neither tempered nor "
            "truncated nor chosen by the answers: leave the algorithm's `scored` decoding and the "
            "rollout's `sampler` and `greedy` at their defaults, and its `pairs` at all or circle, "
            "or choose a regression"
        )
    value = batch.payoff - (batch.log_prob.detach() - batch.centre_log_prob) / step.step_size
    given = value, batch.weight, batch.enumerated
    if batch.reused:
        return losses.clipped_policy_gradient(batch.ratio, *given, batch.clip, length)
    return losses.policy_gradient(batch.log_prob, *given, length)


@learns_from("any")
def sppo_regression(step: ProximalStep, batch: Batch) -> Tensor:
    r"""SPPO's loss, (log(pi/c)(y) - s (q(y) - 1/2))^2 for each response, arXiv 2405.00675.

    1/2 stands in for log Z / s, so its minimiser is the proximal step to O(s^2) only.
    """
    log_ratio = batch.log_prob - batch.centre_log_prob
    target = step.step_size * (batch.payoff_of_others - 0.5)
    return losses.pointwise_regression(log_ratio, target, batch.weight)


@learns_from("any")
def logistic(step: ProximalStep, batch: Batch) -> Tensor:
    """DPO's logistic loss on pairs of responses, arXiv 2402.04792.

    Raises:
        ValueError: the responses were not compared with each other, or what was said of them is no
            probability.
    """
    if batch.preference is None or batch.pair_weight is None:
        raise ValueError(
            "the logistic loss compares responses with each other: choose an algorithm with pairs"
        )
    if batch.payoff_bound > 0.5:
        raise ValueError(
            "the logistic loss fits probabilities, and the oracle answers with payoffs outside of "
            "[0, 1]: give its payoff a bound of 1/2, take labels (`hard`), or choose a regression"
        )
    log_ratio = batch.log_prob - batch.reference_log_prob
    return losses.logistic(log_ratio, batch.preference, batch.pair_weight, batch.beta)


@learns_from("any")
def payoff_cross_entropy(step: ProximalStep, batch: Batch) -> Tensor:
    r"""DNO's loss on pairs, cross-entropy of sigma((d - d')/s) to sigma(q - q'), arXiv 2404.03715.

    d = log(pi/c), so that its minimiser is the proximal step where q is exact, for any sampler with
    full support. Where q is estimated it is biased, of order s var(q).
    """
    target = torch.sigmoid(batch.payoff[:, :, None] - batch.payoff[:, None, :])
    pair_weight = losses.pair_weight(batch.weight, batch.enumerated)
    log_ratio = batch.log_prob - batch.centre_log_prob
    return losses.logistic(log_ratio, target, pair_weight, 1 / step.step_size)


def explored_log_prob(batch: Batch) -> Tensor:
    """E log pi(y') over responses that nobody judges, XPO's term, arXiv 2405.21046 [B].

    Raises:
        ValueError: none were drawn.
    """
    if batch.explored_log_prob is None or batch.explored_weight is None:
        raise ValueError(
            "the exploration term takes responses of the step's `explored` player: draw them in "
            "the rollout's `play`, as Rollout does"
        )
    log_prob = torch.where(batch.explored_weight > 0, batch.explored_log_prob, 0.0)
    return (batch.explored_weight * log_prob).sum(-1)
