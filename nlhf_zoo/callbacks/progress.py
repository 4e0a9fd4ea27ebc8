"""A progress bar over rounds, where Lightning would count batches of an endless stream."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from typing_extensions import override

from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.schedules import total_rounds
from nlhf_zoo.preference_models.progress import TrainingBar


class GameProgressBar(TrainingBar, ProgressBar):
    """Rounds played of those in the budget, on standard error, for runs of over a second."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._tokens = 0  # that were drawn before this run began

    def disable(self) -> None:
        """Show nothing (Lightning calls this in all processes but the first)."""
        self._enabled = False

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled or not isinstance(pl_module, OnlineGame):
            return
        total = total_rounds(pl_module)
        self._tokens = pl_module.progress.tokens
        self.open(type(pl_module.algorithm).__name__, "rounds", pl_module.progress.round, total)

    @override
    def position(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> tuple[int, dict[str, Any]]:
        assert isinstance(pl_module, OnlineGame)  # else there is no bar
        figures = self.get_metrics(trainer, pl_module)
        figures.pop("v_num", None)
        shown = {k.split("/")[-1]: v for k, v in figures.items()}
        return pl_module.progress.round, shown | self._speed(pl_module)

    def _speed(self, game: OnlineGame) -> dict[str, str]:
        """Tokens per second, and which phase takes the largest share; nothing in closed form."""
        seconds = game.timer.total
        whole = sum(seconds.values())
        if game.progress.tokens == self._tokens or not whole:
            return {}
        slowest = max(seconds, key=seconds.__getitem__)
        return {
            "tokens/s": f"{(game.progress.tokens - self._tokens) / whole:.0f}",
            slowest: f"{seconds[slowest] / whole:.0%}",
        }
