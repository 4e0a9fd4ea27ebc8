"""The logistic loss of DPO, on soft preferences or on labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def logistic(log_ratio: Tensor, preference: Tensor, pair_weight: Tensor, beta: float) -> Tensor:
    r"""Cross-entropy of the preference that a policy implies.

    .. math:: E_{y, y'} [ - p \log \sigma(\beta D) - (1 - p) \log \sigma(- \beta D) ],
              D = \log \frac{\pi_\theta}{\mu}(y) - \log \frac{\pi_\theta}{\mu}(y')

    Args:
        log_ratio: log pi_theta(y_k) - log mu(y_k), [B, K].
        preference: p = P(y_k > y_k'), soft, or 0 and 1 for labels [B, K, K].
        pair_weight: weights of the pairs, 0 where invalid, [B, K, K].
        beta: temperature.

    Returns:
        the loss [B].
    """
    difference = log_ratio[:, :, None] - log_ratio[:, None, :]
    used = pair_weight > 0
    difference = beta * torch.where(used, difference, torch.zeros_like(difference))
    preference = torch.where(used, preference, torch.zeros_like(preference))
    entropy = -preference * logsigmoid(difference) - (1 - preference) * logsigmoid(-difference)
    return (pair_weight * entropy).sum((-2, -1))


def pair_weight(weight: Tensor, enumerated: bool) -> Tensor:
    """Weights of the pairs of valid responses, w w', or 1 / (n (n - 1)) of two sampled ones.

    Args:
        weight: weights of the responses, 0 where invalid, [B, K].
        enumerated: whether all responses are there, so that weights are probabilities.

    Returns:
        the weights [B, K, K]; they sum to 1, or to 0 where fewer than two samples are valid.

    Raises:
        ValueError: one response is sampled, so there is no pair.
    """
    if enumerated:
        return weight[:, :, None] * weight[:, None, :]
    if weight.shape[-1] < 2:
        raise ValueError(
            "a loss on pairs needs two responses a prompt: set num_responses to 2 or more"
        )
    used = weight > 0
    itself = torch.eye(weight.shape[-1], dtype=torch.bool, device=weight.device)
    pairs = (used[:, :, None] & used[:, None, :] & ~itself).to(weight.dtype)
    return pairs / pairs.sum((-2, -1), keepdim=True).clamp(min=1)
