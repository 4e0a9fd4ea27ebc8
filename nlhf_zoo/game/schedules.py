"""How much of a game's budget is spent: what a learning rate may follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.lightning_internals import trainer_of

if TYPE_CHECKING:
    from nlhf_zoo.game.online_game import OnlineGame


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
    step = min(1.0, step)  # people may be waited for
    played = progress.round + (progress.step + step) / len(game.plan)
    return min(1.0, played / max(1, rounds))


def total_rounds(game: OnlineGame) -> int | None:
    """Rounds of a game from its start to the end of its budget; None where there is none."""
    limits = [] if game.max_rounds is None else [game.max_rounds]
    # With an adaptive step nobody knows how many rounds so many queries are.
    if game.max_queries is not None and not game.algorithm.adaptive:
        limits.append(game.max_queries // max(1, game.queries_per_round()))
    return min(limits, default=None)
