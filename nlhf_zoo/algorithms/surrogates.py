"""Surrogates: the losses by whose gradient a proximal step is realised.

Each is a function (step, batch) -> [B], and can be given to any algorithm that it fits:

    --model.algorithm.surrogate nlhf_zoo.algorithms.surrogates.proximal_regression
"""

from __future__ import annotations

from torch import Tensor

from nlhf_zoo import losses
from nlhf_zoo.records import Batch, ProximalStep


def proximal_regression(step: ProximalStep, batch: Batch) -> Tensor:
    r"""Regression on pairs, (D log pi - D log c - s D q)^2.

    Its minimiser is the proximal step itself, for any sampler with full support.
    """
    residual = batch.log_prob - batch.centre_log_prob - step.step_size * batch.payoff
    return losses.pair_regression(residual, batch.weight, batch.enumerated)


def ipo_regression(step: ProximalStep, batch: Batch) -> Tensor:
    r"""Online IPO's regression, (D log(pi/mu) - D q / beta)^2, arXiv 2403.08635.

    At pi = pi_t its gradient is 1 / (s beta) times that of ``proximal_regression`` with the centre
    pi_t^(1 - s beta) mu^(s beta): the step size then lies in the learning rate alone. With samples
    and K = 2 in self-play it is IPO 2, (D log(pi/mu) - (P(y > y') - 1/2) / beta)^2; with opponents
    of their own it is IPO 1.
    """
    residual = batch.log_prob - batch.reference_log_prob - batch.payoff / batch.beta
    return losses.pair_regression(residual, batch.weight, batch.enumerated)


def policy_gradient(step: ProximalStep, batch: Batch) -> Tensor:
    r"""Policy gradient of the step's objective over s: A = q - (log pi - log c) / s - baseline.

    With c = pi_t^(1 - s beta) mu^(s beta), at pi = pi_t, A is q - beta log(pi/mu), as Nash-MD-PG
    has it (arXiv 2312.00886); with Nash-MP's centre it is

        q - beta log(pi/mu) - (beta/eta) log(pi/anchor)

    Raises:
        ValueError: the responses do not come from the policy itself.
    """
    if dict(step.sampler) != {"policy": 1.0} or not step.scored.is_plain:
        raise ValueError(
            "the policy gradient needs responses of the policy itself, "
            "neither tempered nor truncated: "
            "leave the algorithm's `scored` decoding at its default or choose a regression"
        )
    value = batch.payoff - (batch.log_prob.detach() - batch.centre_log_prob) / step.step_size
    return losses.policy_gradient(batch.log_prob, value, batch.weight, batch.enumerated)


def sppo_regression(step: ProximalStep, batch: Batch) -> Tensor:
    r"""SPPO's loss, (log(pi/c)(y) - s (q(y) - 1/2))^2 for each response, arXiv 2405.00675.

    1/2 stands in for log Z / s, so its minimiser is the proximal step to O(s^2) only.
    """
    log_ratio = batch.log_prob - batch.centre_log_prob
    target = step.step_size * (batch.payoff_of_others - 0.5)
    return losses.pointwise_regression(log_ratio, target, batch.weight)


def logistic(step: ProximalStep, batch: Batch) -> Tensor:
    """DPO's logistic loss on pairs of responses, arXiv 2402.04792.

    Raises:
        ValueError: the responses were not compared with each other.
    """
    if batch.preference is None or batch.pair_weight is None:
        raise ValueError(
            "the logistic loss compares responses with each other: choose an algorithm with pairs"
        )
    log_ratio = batch.log_prob - batch.reference_log_prob
    return losses.logistic(log_ratio, batch.preference, batch.pair_weight, batch.beta)
