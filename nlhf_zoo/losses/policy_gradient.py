"""The score-function loss of Nash-MD-PG and of Nash-MP's stochastic form."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_gradient(
    log_prob: Tensor, value: Tensor, weight: Tensor, enumerated: bool, length: Tensor | None = None
) -> Tensor:
    r"""A loss whose gradient is minus the gradient of an expected value.

    .. math:: - E_{y \sim \pi_\theta} [ sg(v(y) - b) \log \pi_\theta(y) ],

    v(y) = q(y) - (log pi_theta(y) - log c(y)) / s. The baseline b is the mean of v when all
    responses are enumerated, the mean over the *other* responses when they are sampled, and 1/2
    when there is no other. It changes no expected gradient: responses must come from pi_theta
    itself.

    Args:
        log_prob: log pi_theta(y_k) with gradient [B, K].
        value: v(y_k); no gradient flows through it [B, K].
        weight: weights of the responses, 0 where invalid, [B, K].
        enumerated: whether all responses are there, so that weights are probabilities.
        length: tokens of each response, by which its part is divided [B, K]; None divides by
            nothing.

    Returns:
        the loss [B].
    """
    used = weight > 0
    advantage = _advantage(value, weight, enumerated)
    score = torch.where(used, log_prob, torch.zeros_like(log_prob))
    return -(_each(weight, length) * advantage * score).sum(-1)


def clipped_policy_gradient(
    ratio: Tensor,
    value: Tensor,
    weight: Tensor,
    enumerated: bool,
    clip: float | None,
    length: Tensor | None = None,
) -> Tensor:
    r"""The same on responses of another policy, by their importance ratio, arXiv 1707.06347.

    .. math:: - E_{y \sim \pi_s} [ \min(r(y) A(y), clip(r(y), 1 - \epsilon, 1 + \epsilon) A(y)) ],
              r = \pi_\theta / \pi_s

    With eps = infinity its gradient is without bias for that at pi_theta: the baseline of the
    others changes no expected gradient under the ratio either.

    Args:
        ratio: r(y_k), with gradient [B, K].
        value: v(y_k); no gradient flows through it [B, K].
        weight: weights of the responses in an expectation over pi_s, 0 where invalid, [B, K].
        enumerated: whether all responses are there, so that weights are probabilities.
        clip: eps; None is infinity.
        length: tokens of each response, by which its part is divided [B, K]; None divides by
            nothing.

    Returns:
        the loss [B].
    """
    advantage = _advantage(value, weight, enumerated)
    ratio = torch.where(weight > 0, ratio, torch.ones_like(ratio))
    bound = ratio * advantage
    if clip is not None:
        bound = torch.minimum(bound, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -(_each(weight, length) * bound).sum(-1)


def standardised(payoff: Tensor, weight: Tensor, enumerated: bool) -> Tensor:
    r"""Payoffs over their standard deviation within the group, about the baseline of a game.

    .. math:: 1/2 + (q(y) - m) / \sigma, \quad m = E q, \quad \sigma^2 = Var \, q

    GRPO divides its rewards so. It is a ratio of estimates, and no sampled gradient of it is
    unbiased; where all payoffs are equal it is 1/2.

    Args:
        payoff: q(y_k), finite everywhere [..., K].
        weight: weights of the responses, 0 where invalid [..., K].
        enumerated: whether all responses are there, so that weights are probabilities; the variance
            of n samples is their sum of squares over n - 1.

    Returns:
        the payoffs that a loss takes in place of q, [..., K].
    """
    apart, scale = deviations(payoff, weight, enumerated)
    return 0.5 + apart * scale


def deviations(payoff: Tensor, weight: Tensor, enumerated: bool) -> tuple[Tensor, Tensor]:
    r"""How far payoffs are from the group's mean, and one over their standard deviation.

    Args:
        payoff: as ``standardised`` takes it, as all else.
        weight: of the responses [..., K].
        enumerated: whether weights are probabilities.

    Returns:
        q(y) - m [..., K], and 1 / sigma [..., 1], which is 0 where all payoffs are equal.
    """
    apart = payoff - torch.linalg.vecdot(weight, payoff)[..., None]
    variance: Tensor = torch.linalg.vecdot(weight, apart * apart)[..., None]
    if not enumerated:
        num = (weight > 0).sum(-1, keepdim=True)
        variance = variance * num / (num - 1).clamp(min=1)
    rounding = (8 * torch.finfo(payoff.dtype).eps) ** 2  # payoffs that differ by it are equal
    return apart, torch.where(variance > rounding, variance.rsqrt(), 0.0)


def _each(weight: Tensor, length: Tensor | None) -> Tensor:
    """The weight of each response's part of a loss; an empty response has one token, too."""
    return weight if length is None else weight / length.clamp(min=1)


def _advantage(value: Tensor, weight: Tensor, enumerated: bool) -> Tensor:
    """The value over its baseline, without gradient; that of an invalid response means nothing."""
    used = weight > 0
    value = torch.where(used, value.detach(), torch.zeros_like(value))
    if enumerated:
        return value - (weight * value).sum(-1, keepdim=True)
    num = used.sum(-1, keepdim=True)
    others = (value.sum(-1, keepdim=True) - value) / (num - 1).clamp(min=1)
    return value - torch.where(num > 1, others, torch.full_like(others, 0.5))
