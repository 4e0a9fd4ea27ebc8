"""A progress bar over training steps."""

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
        self._bar: tqdm[Any] | None = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.progress_bar_callback is None:
            return
        steps = trainer.estimated_stepping_batches
        total = None if steps == float("inf") else int(steps)
        name = type(pl_module).__name__
        self._bar = tqdm(
            total=total, initial=trainer.global_step, desc=name, unit=" steps", delay=1
        )

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._bar is not None:
            loss = trainer.progress_bar_metrics.get("train/loss")
            self._bar.set_postfix({} if loss is None else {"loss": loss}, refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    @override
    def on_exception(self, *_: Any) -> None:
        self.on_train_end()

    @override
    def on_train_end(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
