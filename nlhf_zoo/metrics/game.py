"""Metrics of games: mean and maximum of an exact quantity of each."""

from __future__ import annotations

from abc import ABC

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from nlhf_zoo.solvers import exploitability, kl_to_nash, span, win_rate


class GameMetric(Metric, ABC):
    """Mean and maximum over games of a quantity of each: a mean alone hides the game that failed.

    A subclass declares ``higher_is_better`` and has an ``update`` that hands one value a game to
    `add`.
    """

    is_differentiable = False
    full_state_update = False

    sum: Tensor
    count: Tensor
    max: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("max", torch.full((), -torch.inf, dtype=torch.float64), dist_reduce_fx="max")

    def add(self, values: Tensor) -> None:
        """Take in one value a game, of any shape."""
        values = values.double()
        self.sum += values.sum()
        self.count += values.numel()
        self.max = torch.maximum(self.max, values.max())

    def compute(self) -> dict[str, Tensor]:
        """``mean`` and ``max`` over all games since the last reset."""
        return {"mean": self.sum / self.count, "max": self.max}


class KLToNash(GameMetric):
    """KL(pi* || pi); see `nlhf_zoo.solvers.kl_to_nash`."""

    higher_is_better = False

    def update(self, log_policy: Tensor, log_nash: Tensor) -> None:
        """Take in B games: log pi and log pi* [B, N]."""
        self.add(kl_to_nash(log_nash, log_policy))


class Span(GameMetric):
    """max_y d(y) - min_y d(y) of d = log pi - log pi*; see `nlhf_zoo.solvers.span`."""

    higher_is_better = False

    def update(self, log_policy: Tensor, log_nash: Tensor) -> None:
        """Take in B games: log pi and log pi* [B, N]."""
        self.add(span(log_policy, log_nash))


class Exploitability(GameMetric):
    """Exploitability e(pi) = max_pi' V(pi', pi) - 1/2; see `nlhf_zoo.solvers.exploitability`.

    Args:
        beta: temperature of the game; 0 is the game without regularisation.
    """

    higher_is_better = False

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def update(self, log_policy: Tensor, preference: Tensor, log_reference: Tensor) -> None:
        """Take in B games: log pi [B, N], P [B, N, N] and log mu [B, N].

        One P [N, N] or log mu [N] is that of all games.
        """
        self.add(exploitability(preference, log_policy, log_reference, self.beta))


class DualityGap(Exploitability):
    """Duality gap, exactly twice the exploitability; see `nlhf_zoo.solvers.duality_gap`.

    Args:
        beta: temperature of the game; 0 is the game without regularisation.
    """

    @override
    def add(self, values: Tensor) -> None:
        super().add(2 * values)


class WinRate(GameMetric):
    """P(pi > pi'), the win rate against an opponent; see `nlhf_zoo.solvers.win_rate`."""

    higher_is_better = True

    def update(self, log_policy: Tensor, log_opponent: Tensor, preference: Tensor) -> None:
        """Take in B games: log pi and log pi' [B, N], and P [B, N, N], or one for all [N, N]."""
        self.add(win_rate(preference, log_policy, log_opponent))
