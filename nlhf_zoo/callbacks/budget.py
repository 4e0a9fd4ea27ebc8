"""The end of a run: so many rounds, or so many preference queries."""

from __future__ import annotations

from typing import Any

import lightning as L
from typing_extensions import override

from nlhf_zoo.callbacks.logs import is_logged
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame


class Budget(L.Callback):
    """Stop before a round that would exceed the budget, and log how much of it is spent.

    `budget/share` is the share of the rounds that are played of those that will be: 0 at the start,
    1 where the run ends, by this budget or by the Trainer's `max_steps`.

    Args:
        rounds: rounds of the game.
        queries: preference queries for each prompt, as algorithms are compared by.
    """

    def __init__(self, rounds: int | None = None, queries: int | None = None) -> None:
        for name, value in (("rounds", rounds), ("queries", queries)):
            if value is not None and value < 0:
                raise UserError(f"a budget of {name} must be at least 0, but it is {value}")
        self.rounds = rounds
        self.queries = queries

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, OnlineGame):
            return
        alone = self.queries is not None and self.rounds is None
        if alone and not pl_module.queries_per_round():
            raise UserError(
                f"a round of {type(pl_module.algorithm).__name__} asks nothing that is not "
                "remembered, so that no budget of queries would end the run: give it rounds"
            )
        pl_module.set_budget(self.rounds, self.queries)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, OnlineGame):
            return
        trainer.should_stop |= pl_module.finished  # it may be, when it is resumed
        if pl_module.progress.batches == 0:
            _log_share(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Stop when the budget is spent."""
        if not isinstance(pl_module, OnlineGame):
            return
        trainer.should_stop |= pl_module.finished
        played = pl_module.trajectory is not None or is_logged(pl_module.progress.round)
        if pl_module.between_rounds and (played or trainer.should_stop):
            _log_share(trainer, pl_module)


def spent_share(trainer: L.Trainer, game: OnlineGame) -> float | None:
    """How much of its budget a run has spent, in [0, 1]; None where it has none.

    With n rounds played and m left it is n / (n + m): a budget of queries that is no multiple of
    what a round asks is spent all the same when no round is left.
    """
    shares = []
    if (left := game.rounds_left()) is not None:
        shares.append(game.progress.round / max(game.progress.round + left, 1) if left else 1.0)
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    return min(max(shares), 1.0) if shares else None


def _log_share(trainer: L.Trainer, game: OnlineGame) -> None:
    if (share := spent_share(trainer, game)) is not None:
        for logger in trainer.loggers:
            logger.log_metrics({"budget/share": share}, game.progress.round)
