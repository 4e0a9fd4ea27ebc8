"""A learning rate that follows the budget of a game, and not a number of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.lightning_internals import trainer_of

if TYPE_CHECKING:
    from nlhf_zoo.game.online_game import OnlineGame


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
        UserError: a number is none of these.
    """

    def __init__(
        self, optimizer: Optimizer, start: float = 1.0, end: float = 0.0, share: float = 1.0
    ) -> None:
        for name, factor in (("start", start), ("end", end)):
            if not 0 <= factor < math.inf:
                raise UserError(f"BudgetLR.{name} must be a number of at least 0, not {factor}")
        if not 0 < share <= 1:
            raise UserError(f"BudgetLR.share must lie above 0 and be at most 1, not {share}")
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


def budget_spent(game: OnlineGame) -> float:
    """The part of a game's budget that is spent, in [0, 1]: that of rounds, or of the Trainer.

    Within a round it grows with each gradient step.

    Raises:
        UserError: the run has no end.
    """
    progress, rounds = game.progress, total_rounds(game)
    if rounds is None:
        trainer = trainer_of(game)
        if trainer is None or trainer.max_steps < 1:
            raise UserError(
                "model.lr_scheduler BudgetLR follows the budget, but there is none: add the "
                "callback Budget, or set trainer.max_steps"
            )
        return min(1.0, trainer.global_step / trainer.max_steps)
    step = progress.gradient_step / game.gradient_steps_of_step if progress.gradient_step else 0.0
    played = progress.round + (progress.step + step) / len(game.plan)
    return min(1.0, played / max(1, rounds))


def total_rounds(game: OnlineGame) -> int | None:
    """Rounds of a game from its start to the end of its budget; None where there is none."""
    limits = [] if game.max_rounds is None else [game.max_rounds]
    # With an adaptive step nobody knows how many rounds so many queries are.
    if game.max_queries is not None and not game.algorithm.adaptive:
        limits.append(game.max_queries // max(1, game.queries_per_round()))
    return min(limits, default=None)
