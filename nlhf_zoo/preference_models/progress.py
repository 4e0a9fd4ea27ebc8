"""A progress bar over training steps, or over what a subclass counts."""

from __future__ import annotations

from typing import Any

import lightning as L
from tqdm import tqdm
from typing_extensions import override


class TrainingBar(L.Callback):
    """Optimiser steps taken of those there will be, on standard error, for runs of over a second.

    Where the trainer's progress bars are off there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None

    def open(self, name: str, unit: str, done: int, total: int | None) -> None:
        """Show the bar from here on; without a total it counts."""
        self._bar = tqdm(total=total, initial=done, desc=name, unit=f" {unit}", delay=1)

    def position(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> tuple[int, dict[str, Any]]:
        """How far the training is, and the figures that stand behind the bar."""
        loss = trainer.progress_bar_metrics.get("train/loss")
        return trainer.global_step, {} if loss is None else {"loss": loss}

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.progress_bar_callback is None:
            return
        steps = trainer.estimated_stepping_batches
        total = None if steps == float("inf") else int(steps)
        self.open(type(pl_module).__name__, "steps", trainer.global_step, total)

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._bar is not None:
            done, figures = self.position(trainer, pl_module)
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(done - self._bar.n)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.on_train_end(trainer, pl_module)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
