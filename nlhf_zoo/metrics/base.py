"""The state that all metrics share."""

from __future__ import annotations

from abc import ABC

import torch
from torch import Tensor
from torchmetrics import Metric


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
