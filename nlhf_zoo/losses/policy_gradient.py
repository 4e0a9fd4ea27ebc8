"""The score-function loss of Nash-MD-PG and of Nash-MP's stochastic form."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_gradient(log_prob: Tensor, value: Tensor, weight: Tensor, enumerated: bool) -> Tensor:
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

    Returns:
        the loss [B].
    """
    used = weight > 0
    value = torch.where(used, value.detach(), torch.zeros_like(value))
    if enumerated:
        baseline = (weight * value).sum(-1, keepdim=True)
    else:
        num = used.sum(-1, keepdim=True)
        others = (value.sum(-1, keepdim=True) - value) / (num - 1).clamp(min=1)
        baseline = torch.where(num > 1, others, torch.full_like(others, 0.5))
    score = torch.where(used, log_prob, torch.zeros_like(log_prob))
    return -(weight * (value - baseline) * score).sum(-1)
