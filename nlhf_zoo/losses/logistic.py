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
