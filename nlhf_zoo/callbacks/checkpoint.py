"""Two checkpoints, ``last.ckpt`` and the one before, always whole; and the random state in them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from nlhf_zoo.callbacks.trained_state import refuse_not_finite
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.files import naming
from nlhf_zoo.game import rollout_files
from nlhf_zoo.game.lightning_internals import (
    has_launcher,
    is_trial,
    is_written,
    log_training_step,
    send_to_children,
    signals_of_ours,
    stand_behind_batch,
    write_last,
)
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.metrics.processes import objects_of_each, sum_over_processes
from nlhf_zoo.oracles import HumanOracle, journal
from nlhf_zoo.oracles.journal import Journal
from nlhf_zoo.oracles.ledger import FIELDS, ledgers
from nlhf_zoo.signals import ENDING, SignalWatch, StoppedBySignal, end_at_once

PREVIOUS = "previous.ckpt"  # beside the last one


class GameCheckpoint(ModelCheckpoint):
    """Write `checkpoints/last.ckpt` every so often, and at the end; `--ckpt_path last` resumes it.

    Also where the oracle has stopped, because a server is down or a budget is spent: the run can go
    on from the last optimiser step as if nothing had happened. Likewise at SIGTERM and SIGINT,
    which end the run with the exit code 143 or 130 as soon as no step is half done; a second one
    ends it at once. The checkpoint before the last one stays, as `previous.ckpt`. Neither is
    replaced by weights that are not finite: the run ends.

    The votes of a `HumanOracle` without a file of its own are kept beside them, in `people.sqlite`.
    What an oracle of texts is asked is counted beside them before it is asked, in `asked-0.jsonl`
    and one such file for each further process: a run that is killed and resumed knows of it.

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
        self._has_written = False  # whether this process has written a checkpoint
        self._steps = 0  # of the optimiser, at the last batch
        self._signals = SignalWatch()
        self._journal: Journal | None = None  # of what the oracle is asked

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.dirpath and "://" not in str(self.dirpath) and not is_trial(trainer):
            for people in _people(pl_module):
                people.place_in(Path(self.dirpath))

    @override
    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, OnlineGame):
            self._begin_journal(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember where the run begins."""
        super().on_train_start(trainer, pl_module)
        # Behind Lightning's own, which puts back what was there before when the run ends.
        again = None if has_launcher(trainer) else partial(_end_at_once, trainer)
        self._signals.install(signals_of_ours(trainer, ENDING), again=again)
        self._steps = trainer.global_step
        if isinstance(pl_module, OnlineGame):
            pl_module.accounts.signals = self._signals
            self._begin_journal(trainer, pl_module)
            self._hold_rollouts(trainer, pl_module)
            self._position, self._accumulated = pl_module.position(), 0
            # Not `on_exception`: the processes of some strategies have none.
            pl_module.set_before_stop(partial(self._write_last_step, trainer, pl_module))
            if _people(pl_module) and not trainer.ckpt_path and not is_trial(trainer):
                # What they are asked first is of these weights: a run that is killed goes on with
                # them, too.
                write_last(self, trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *others: Any
    ) -> None:
        """Log this step's figures first; write nothing while gradients wait for an optimiser step.

        Lightning logs them after saving, and a kill in between would lose them. Behind a resume it
        would save between two batches of an optimiser step, without their gradients.
        """
        if isinstance(pl_module, OnlineGame) and pl_module.accumulates:
            self._accumulated += 1
            return
        if not isinstance(pl_module, OnlineGame) and trainer.global_step == self._steps:
            return
        if trainer.global_step % self._every_n_train_steps == 0:
            log_training_step(trainer)
        super().on_train_batch_end(trainer, pl_module, *others)
        if not isinstance(pl_module, OnlineGame):
            self._stop_at_signal(trainer)
        elif self._position is not None:
            self._position, self._accumulated = pl_module.position(), 0

    def _stop_at_signal(self, trainer: L.Trainer) -> None:
        """End the training of what is no game behind an optimiser step; a game ends in asking."""
        self._steps = trainer.global_step
        here = [self._signals.received == signum for signum in ENDING]
        for signum, number in zip(ENDING, sum_over_processes(trainer, here), strict=True):
            if number:
                log_training_step(trainer)
                self._write(trainer)
                raise StoppedBySignal(signum)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """End a validation in the middle of training, where no other process waits for it."""
        if trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1:
            with self._signals.raising():
                pass

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Where validation was stopped, write a checkpoint, too."""
        # In training it is written already, see `on_train_start`.
        stopped = isinstance(exception, OracleStoppedError | StoppedBySignal)
        if stopped and isinstance(pl_module, OnlineGame):
            self._write_last_step(trainer, pl_module)

    def _write_last_step(self, trainer: L.Trainer, game: OnlineGame) -> None:
        """Write a checkpoint as of the last optimiser step, once; all processes call this."""
        position, self._position = self._position, None
        if position is None or trainer.state.fn != TrainerFn.FITTING or is_trial(trainer):
            return
        game.rewind(position)
        stand_behind_batch(trainer, self._accumulated)
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        """Write the last checkpoint of a run that stops, and say where it lies."""
        write_last(self, trainer)
        if trainer.is_global_zero and self._last_checkpoint_saved:
            print(f"Checkpoint: {self._last_checkpoint_saved}", file=sys.stderr)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The end of a run seldom falls on a multiple of the interval."""
        if not is_trial(trainer) and not is_written(self, trainer):
            write_last(self, trainer)

    def _hold_rollouts(self, trainer: L.Trainer, game: OnlineGame) -> None:
        """Have rollouts that serve several steps written beside the checkpoints."""
        if game.reuse is None or is_trial(trainer):
            return
        if not self.dirpath or "://" in str(self.dirpath):
            return
        game.reuse.folder = Path(self.dirpath) / rollout_files.FOLDER
        game.reuse.named = [None] * 2 if trainer.ckpt_path else []

    def _begin_journal(self, trainer: L.Trainer, game: OnlineGame) -> None:
        """Count what was asked after the checkpoint, and from now on before it is asked."""
        asked = ledgers(game.oracle)
        if self._journal is not None or not asked or is_trial(trainer):
            return
        if not self.dirpath or "://" in str(self.dirpath):  # elsewhere nothing can be written over
            return
        folder, process, resumed = Path(self.dirpath), trainer.global_rank, trainer.ckpt_path
        extra = [0] * (len(asked) * len(FIELDS))
        if resumed and process == 0:  # who reads for all
            extra = journal.uncounted(asked, Path(str(resumed)).parent)
        of_all = iter(game.accounts.reduce(extra))
        for ledger in asked.values():
            ledger.restore({field: ledger[field] + next(of_all) for field in FIELDS})
        # The first process's file has all that was asked before the others' begin anew: where that
        # is cut short, some is counted twice, and nothing is lost.
        for turn in (True, False):
            if turn == (process == 0):
                self._journal = Journal(folder, process, asked, begins=turn)
            trainer.strategy.barrier()
        if process == 0:
            journal.forget_others(folder, trainer.world_size)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._journal is not None:
            self._journal.end()
            self._journal = None
        if isinstance(pl_module, OnlineGame) and pl_module.reuse is not None:
            pl_module.reuse.folder, pl_module.reuse.named = None, []  # they are this run's

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        """Write beside the file and rename; the one before stays, under another name.

        Lightning writes where temporary files lie and moves; from another file system that is a
        copy, which a kill would leave half done.

        Raises:
            DivergenceError: what was trained is not finite; the file stays as it was.
            OSError: it cannot be written, and stays as it was; the error names it.
        """
        place = Path(filepath)
        refuse_not_finite(trainer, trainer.lightning_module, place)
        for logger in trainer.loggers:
            with naming(logger.save_dir or "a logger"):
                logger.save()  # what was logged must be on disk before the checkpoint counting it
        beside = Path(f"{filepath}.part")
        with naming(place):
            try:
                super()._save_checkpoint(trainer, str(beside))
                if trainer.is_global_zero:
                    self._replace(trainer, place, beside)
            finally:
                if trainer.is_global_zero:
                    beside.unlink(missing_ok=True)
        trainer.strategy.barrier()  # a process that ends may take the others with it
        game = trainer.lightning_module
        if isinstance(game, OnlineGame) and game.reuse is not None:
            game.reuse.named_by_checkpoint()
        self._has_written = True
        self._last_checkpoint_saved = filepath

    def _replace(self, trainer: L.Trainer, place: Path, beside: Path) -> None:
        # Where another was resumed from, the one in this place may be what was wrong.
        resumed = Path(trainer.ckpt_path or "").resolve()
        if self._has_written or place.resolve() == resumed:
            _keep(place)
        os.replace(beside, place)


def _people(module: L.LightningModule) -> list[HumanOracle]:
    """Those of a module's oracle."""
    return [part for part in module.modules() if isinstance(part, HumanOracle)]


def _keep(last: Path) -> None:
    """Let the last checkpoint be the previous one too, so that at no time there is none."""
    if not last.is_file():
        return
    beside = last.with_name(f"{PREVIOUS}.part")
    beside.unlink(missing_ok=True)
    try:
        os.link(last, beside)
    except OSError:  # a file system without links
        shutil.copyfile(last, beside)
    os.replace(beside, last.with_name(PREVIOUS))


def _end_at_once(trainer: L.Trainer, signum: int) -> None:
    send_to_children(trainer, signal.SIGKILL)
    end_at_once(signum)


class ResumeState(L.Callback):
    """Save and restore the global random state of Python, NumPy and PyTorch.

    The game's own draws come from streams keyed by seed, process and step; this is for what users
    add. Each process has a state of its own; where there are more or fewer than there were, all go
    on from the first one's.
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

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.world_size > 1 and "callbacks" in checkpoint:  # of whole checkpoints
            each = objects_of_each(trainer, self.state_dict())
            checkpoint["callbacks"][self.state_key] = {"each": each}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until training starts: what is set up before then draws too."""
        self._loaded = state_dict

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._loaded is None:
            return
        if each := self._loaded.get("each"):
            self._loaded = each[trainer.global_rank if len(each) == trainer.world_size else 0]
        torch.set_rng_state(self._loaded["torch"])
        if self._loaded["cuda"]:
            # a run may go on with fewer devices than it had
            torch.cuda.set_rng_state_all(self._loaded["cuda"][: torch.cuda.device_count()])
        name, keys, *rest = self._loaded["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        version, internal, gauss = self._loaded["python"]
        random.setstate((version, tuple(internal), gauss))
        self._loaded = None
