"""Metrics of what a policy says to held-out prompts, from samples.

Their states are sums, so that processes may see different numbers of prompts.
"""

from __future__ import annotations

from abc import ABC
from typing import final

import torch
from torch import Tensor
from torchmetrics import Metric

from nlhf_zoo.solvers import score_interval


class _Sums(Metric, ABC):
    """Sums in float64, since the last reset, of all processes."""

    is_differentiable = False
    full_state_update = False
    names: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        for name in self.names:
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")


@final
class SampledWinRate(_Sums):
    """P(policy > opponent), the mean over prompts, and its interval at 95 %.

    The interval is that of `nlhf_zoo.solvers.score_interval`: prompts are a sample, and those that
    nobody could judge are left out. Of payoffs of another range than [0, 1] it is the interval of
    what lies as far between 0 and 1.

    Args:
        payoff_bound: largest distance of a figure from 1/2.
    """

    higher_is_better = True
    names = ("total", "squares", "prompts")

    total: Tensor
    squares: Tensor
    prompts: Tensor

    def __init__(self, payoff_bound: float = 0.5) -> None:
        super().__init__()
        self.range = 2 * payoff_bound

    def update(self, win_rate: Tensor) -> None:
        """Take in the win rates of n prompts [n], each in [0, 1], or within the bound of 1/2."""
        values = win_rate.double()
        if self.range != 1:
            values = 0.5 + (values - 0.5) / self.range
        self.total += values.sum()
        self.squares += values.square().sum()
        self.prompts += len(values)

    def compute(self) -> dict[str, Tensor]:
        """``mean``, ``low`` and ``high``; NaN of no prompt, the ends also of one."""
        total, squares = self.total.item(), self.squares.item()
        low, high = score_interval(total, squares, int(self.prompts))
        ends = {"low": low, "high": high}
        found = {name: self.total.new_tensor(end) for name, end in ends.items()}
        found = {"mean": self.total / self.prompts, **found}
        if self.range == 1:
            return found
        return {name: 0.5 + self.range * (figure - 0.5) for name, figure in found.items()}


@final
class SampledMean(_Sums):
    """Mean of a figure of each response that was drawn, or of each answer; NaN of none.

    Responses to a prompt weigh the same in all prompts that have as many of them.
    """

    higher_is_better = None
    names = ("total", "number")

    total: Tensor
    number: Tensor

    def update(self, values: Tensor, weight: Tensor | None = None) -> None:
        """Take in values of any shape, each with a weight, or with 1."""
        weight = torch.ones_like(values, dtype=torch.float64) if weight is None else weight.double()
        self.total += (values.double() * weight).sum()
        self.number += weight.sum()

    def compute(self) -> Tensor:
        """The mean over all since the last reset []."""
        return self.total / self.number
