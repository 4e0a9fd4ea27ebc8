"""Regression of log-ratios on payoffs: on pairs (IPO, INPO, EGPO) and pointwise (SPPO)."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_regression(residual: Tensor, weight: Tensor, enumerated: bool) -> Tensor:
    r"""Expected squared difference of residuals over two independent responses.

    .. math:: E_{y, y'} (d(y) - d(y'))^2 = 2 Var(d),

    which costs O(K). Sampled, the sum runs over the K (K - 1) pairs of distinct responses, so that
    it is unbiased: the variance gains the factor n / (n - 1), n the number of valid responses.

    Args:
        residual: d(y_k) = log pi_theta(y_k) - log c(y_k) - s q(y_k), [B, K].
        weight: weights of the responses, 0 where invalid, [B, K].
        enumerated: whether all responses are there, so that weights are probabilities.

    Returns:
        the loss [B]; 0 where fewer than two responses are valid.

    Raises:
        ValueError: one response is sampled, so there is no pair.
    """
    if not enumerated and residual.shape[-1] < 2:
        raise ValueError(
            "a loss on pairs needs two responses a prompt: set num_responses to 2 or more"
        )
    residual = torch.where(weight > 0, residual, torch.zeros_like(residual))
    mean = (weight * residual).sum(-1, keepdim=True)
    variance = (weight * (residual - mean) ** 2).sum(-1)
    if enumerated:
        return 2 * variance
    num = (weight > 0).sum(-1)
    return 2 * variance * num / (num - 1).clamp(min=1)


def pointwise_regression(log_ratio: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    r"""Expected squared error of each response's log-ratio, E_y (log_ratio(y) - target(y))^2.

    Args:
        log_ratio: log pi_theta(y_k) - log pi_t(y_k), [B, K].
        target: what it should be, without gradient [B, K].
        weight: weights of the responses, 0 where invalid, [B, K].

    Returns:
        the loss [B].
    """
    error = torch.where(weight > 0, log_ratio - target, torch.zeros_like(log_ratio))
    return (weight * error**2).sum(-1)
