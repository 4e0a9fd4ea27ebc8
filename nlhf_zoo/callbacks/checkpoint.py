"""One checkpoint, ``last.ckpt``, always whole."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from nlhf_zoo.errors import UserError


class GameCheckpoint(ModelCheckpoint):
    """Write `checkpoints/last.ckpt` every so often, and at the end; `--ckpt_path last` resumes it.

    Args:
        every_n_train_steps: training steps between two; in closed form one training step plays
            many rounds.
        dirpath: another folder.
    """

    def __init__(self, every_n_train_steps: int = 100, dirpath: str | None = None) -> None:
        if every_n_train_steps < 1:
            raise UserError(
                f"every_n_train_steps must be at least 1, but it is {every_n_train_steps}"
            )
        super().__init__(
            dirpath=dirpath,
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,  # else a resumed run would write last-v1.ckpt
        )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log this step's figures first.

        Lightning logs them after saving, and a kill in between would lose them.
        """
        if trainer.global_step % self._every_n_train_steps == 0:
            trainer._logger_connector.update_train_step_metrics()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The end of a run seldom falls on a multiple of the interval."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by its debugging connector
            return
        if trainer.global_step != self._last_global_step_saved or not self._last_checkpoint_saved:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        """Write beside the file and rename.

        Lightning writes where temporary files lie and moves; from another file system that is a
        copy, which a kill would leave half done.
        """
        for logger in trainer.loggers:
            logger.save()  # what was logged must be on disk before the checkpoint that counts it
        beside = f"{filepath}.part"
        super()._save_checkpoint(trainer, beside)
        if trainer.is_global_zero:
            os.replace(beside, filepath)
        self._last_checkpoint_saved = filepath
