"""A learning rate that follows the budget of a game, and not a number of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override


class BudgetLR(LRScheduler):
    r"""A learning rate that moves in a straight line over a share of the run's budget.

    .. math:: lr = lr_0 (a + (b - a) \min(1, t / share)),

    t being the part of the budget (rounds, queries, or the Trainer's max_steps) that is spent. A
    change of epochs, of minibatches or of processes needs no other number here.

    Args:
        optimizer: whose rate it is.
        start: a, the factor at the start.
        end: b, the factor at the end.
        share: of the budget, in (0, 1], after which the factor stays.

    Raises:
        ValueError: a number is none of these.
    """

    def __init__(
        self, optimizer: Optimizer, start: float = 1.0, end: float = 0.0, share: float = 1.0
    ) -> None:
        for name, factor in (("start", start), ("end", end)):
            if not 0 <= factor < math.inf:
                raise ValueError(f"BudgetLR.{name} must be a number of at least 0, not {factor}")
        if not 0 < share <= 1:
            raise ValueError(f"BudgetLR.share must lie above 0 and be at most 1, not {share}")
        self.start = start
        self.end = end
        self.share = share
        self._spent: Callable[[], float] | None = None
        super().__init__(optimizer)

    def follow(self, spent: Callable[[], float]) -> None:
        """Ask for the part of the budget that is spent, in [0, 1], at each step."""
        self._spent = spent

    @override
    def get_lr(self) -> list[float | Any]:
        spent = 0.0 if self._spent is None else self._spent()
        factor = self.start + (self.end - self.start) * min(1.0, spent / self.share)
        return [rate * factor for rate in self.base_lrs]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().state_dict().items() if name != "_spent"}


def followers(schedule: object) -> list[BudgetLR]:
    """Those within a schedule that follow a budget, itself among them."""
    if isinstance(schedule, BudgetLR):
        return [schedule]
    within = getattr(schedule, "_schedulers", [])  # of SequentialLR and ChainedScheduler
    return [each for other in within for each in followers(other)]
