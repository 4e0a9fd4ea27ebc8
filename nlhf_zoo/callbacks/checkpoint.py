"""One checkpoint, ``last.ckpt``, always whole; and the random state in it."""

from __future__ import annotations

import os
import random
import sys
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.game.lightning_internals import (
    is_trial,
    is_written,
    log_training_step,
    stand_behind_batch,
    write_last,
)
from nlhf_zoo.game.online_game import OnlineGame


class GameCheckpoint(ModelCheckpoint):
    """Write `checkpoints/last.ckpt` every so often, and at the end; `--ckpt_path last` resumes it.

    Also where the oracle has stopped, because a server is down or a budget is spent: the run can go
    on from the last optimiser step as if nothing had happened.

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
        self._position: dict[str, Any] | None = None  # of the game at the last optimiser step
        self._accumulated = 0  # batches since then

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where the run begins."""
        super().on_train_start(trainer, pl_module)
        if isinstance(pl_module, OnlineGame):
            self._position, self._accumulated = pl_module.position(), 0
            # Not `on_exception`: the processes of some strategies have none.
            pl_module.set_before_stop(partial(self._write_last_step, trainer, pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *others: Any
    ) -> None:
        """Log this step's figures first.

        Lightning logs them after saving, and a kill in between would lose them.
        """
        if trainer.global_step % self._every_n_train_steps == 0:
            log_training_step(trainer)
        super().on_train_batch_end(trainer, pl_module, *others)
        if isinstance(pl_module, OnlineGame) and self._position is not None:
            if pl_module.accumulates:
                self._accumulated += 1
            else:
                self._position, self._accumulated = pl_module.position(), 0

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Where the oracle has stopped in validation, write a checkpoint, too."""
        # In training it is written already, see `on_train_start`.
        if isinstance(exception, OracleStoppedError) and isinstance(pl_module, OnlineGame):
            self._write_last_step(trainer, pl_module)

    def _write_last_step(self, trainer: L.Trainer, game: OnlineGame) -> None:
        """Write a checkpoint as of the last optimiser step, once; all processes call this."""
        position, self._position = self._position, None
        if position is None or trainer.state.fn != TrainerFn.FITTING or is_trial(trainer):
            return
        game.rewind(position)
        stand_behind_batch(trainer, self._accumulated)
        write_last(self, trainer)
        if trainer.is_global_zero and self._last_checkpoint_saved:
            print(f"Checkpoint: {self._last_checkpoint_saved}", file=sys.stderr)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The end of a run seldom falls on a multiple of the interval."""
        if not is_trial(trainer) and not is_written(self, trainer):
            write_last(self, trainer)

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


class ResumeState(L.Callback):
    """Save and restore the global random state of Python, NumPy and PyTorch.

    The game's own draws come from streams keyed by seed, process and step; this is for what users
    add.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The random state, in types that a checkpoint may hold."""
        name, keys, *rest = np.random.get_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "torch": torch.get_rng_state(),
            "cuda": cuda,
            "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
            "python": random.getstate(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until training starts: what is set up before then draws too."""
        self._loaded = state_dict

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._loaded is None:
            return
        torch.set_rng_state(self._loaded["torch"])
        if self._loaded["cuda"]:
            # a run may go on with fewer devices than it had
            torch.cuda.set_rng_state_all(self._loaded["cuda"][: torch.cuda.device_count()])
        name, keys, *rest = self._loaded["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        version, internal, gauss = self._loaded["python"]
        random.setstate((version, tuple(internal), gauss))
        self._loaded = None
