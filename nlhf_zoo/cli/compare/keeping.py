"""What a run of a comparison keeps while it goes on, so that its rounds are not played again."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
from typing_extensions import override

from nlhf_zoo.callbacks import GameCheckpoint
from nlhf_zoo.callbacks.checkpoint import PREVIOUS
from nlhf_zoo.cli.resuming import is_whole

FOLDER = "checkpoints"  # of a run's folder, until the run has ended
EVERY = 60.0  # seconds between two checkpoints of a run, and from its start to the first
_NEVER = 2**62  # training steps


class RunCheckpoint(GameCheckpoint):
    """Writes a checkpoint once a minute, and where a signal ends the run; none at its end.

    When it is written changes nothing: a run that is resumed goes on bit for bit. Short runs write
    none, and cost nothing.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(every_n_train_steps=1, dirpath=str(folder / FOLDER))
        self._at = time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *others: Any
    ) -> None:
        is_due = time.monotonic() - self._at >= EVERY
        self._every_n_train_steps = 1 if is_due else _NEVER
        super().on_train_batch_end(trainer, pl_module, *others)
        if is_due:
            self._at = time.monotonic()

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The result is written next, and no checkpoint is wanted any more."""

    @property
    def signal(self) -> signal.Signals | None:
        """A signal that asked for the end of a run that ended by itself."""
        return self._signals.received


def checkpoint_of(folder: Path) -> Path | None:
    """The checkpoint that the run in a folder goes on from; None where there is no whole one."""
    places = [folder / FOLDER / name for name in ("last.ckpt", PREVIOUS)]
    return next((path for path in places if path.is_file() and is_whole(path)), None)


def forget(folder: Path) -> None:
    """Remove the checkpoints of the run in a folder."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
