"""The end of a run: so many rounds, or so many preference queries."""

from __future__ import annotations

from typing import Any

import lightning as L
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame


class Budget(L.Callback):
    """Stop before a round that would exceed the budget.

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
        self.on_train_batch_end(trainer, pl_module)  # it may be finished when it is resumed

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Stop when the budget is spent."""
        if isinstance(pl_module, OnlineGame) and pl_module.finished:
            trainer.should_stop = True
