"""Where the time goes, in every logger."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from typing_extensions import override

from nlhf_zoo.callbacks.query_log import is_logged
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import ClosedForm


class TimeLog(L.Callback):
    """Log the seconds of a training step by phase, and tokens per second, against rounds.

    The figures are means since those before; they are this process's, but the tokens are of all.
    In closed form there are no phases, and nothing is logged.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._steps = 0
        self._tokens = 0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, OnlineGame):
            pl_module.timer.take()
            self._begin(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log at the end of a round, thinned."""
        if not isinstance(pl_module, OnlineGame) or isinstance(pl_module.realisation, ClosedForm):
            return
        self._steps += 1
        progress = pl_module.progress
        if not pl_module.between_rounds or not is_logged(progress.round):
            return
        seconds = time.perf_counter() - self._since
        figures = {
            f"time/{phase}": spent / self._steps for phase, spent in pl_module.timer.take().items()
        }
        figures["time/step"] = seconds / self._steps
        figures["speed/tokens_per_second"] = (progress.tokens - self._tokens) / seconds
        for logger in trainer.loggers:
            logger.log_metrics(figures, progress.round)
        self._begin(pl_module)

    def _begin(self, game: OnlineGame) -> None:
        self._since = time.perf_counter()
        self._steps = 0
        self._tokens = game.progress.tokens
