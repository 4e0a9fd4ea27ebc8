r"""Losses of a preference model: of the log-odds of P(first > second) against a label.

A label is a probability, 0 and 1 among them: that of one annotator's verdict, or of several'.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def cross_entropy(log_odds: Tensor, label: Tensor) -> Tensor:
    r"""The logistic loss, on soft labels.

    .. math:: - p \log \sigma(s) - (1 - p) \log \sigma(- s)

    Its least value is the entropy of the label, at s = logit p. With rewards, s = r - r', it is the
    likelihood of Bradley and Terry (1952).

    Args:
        log_odds: s, of P(first > second) = sigma(s), [B].
        label: p in [0, 1], [B].

    Returns:
        the loss of each pair [B].
    """
    return binary_cross_entropy_with_logits(log_odds, label.to(log_odds), reduction="none")


def squared_error(log_odds: Tensor, label: Tensor) -> Tensor:
    r"""The Brier score, bounded where a label is wrong.

    .. math:: (\sigma(s) - p)^2

    Args:
        log_odds: s, of P(first > second) = sigma(s), [B].
        label: p in [0, 1], [B].

    Returns:
        the loss of each pair [B].
    """
    return (torch.sigmoid(log_odds) - label.to(log_odds)).square()
