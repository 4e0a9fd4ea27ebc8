"""What Lightning 2.6.6 and torch keep private: an upgrade breaks here, or nowhere.

`tests/game/test_lightning_internals.py` holds Lightning to each of these.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import (
    PrefixStore,
    Store,
    _get_default_group,
    _get_default_store,
)

from nlhf_zoo.signals import StoppedBySignal


def trainer_of(module: L.LightningModule) -> L.Trainer | None:
    """The trainer of a module, None without one: `module.trainer` would raise."""
    trainer: L.Trainer | None = module._trainer
    return trainer


def is_trial(trainer: L.Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which leaves nothing behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # its debugging connector's


def log_training_step(trainer: L.Trainer) -> None:
    """Hand a training step's figures to the loggers now.

    Lightning does it after `on_train_batch_end`, where checkpoints are written.
    """
    trainer._logger_connector.update_train_step_metrics()


def write_last(checkpoint: ModelCheckpoint, trainer: L.Trainer) -> None:
    """Write `last.ckpt`, whatever the interval says."""
    checkpoint._save_last_checkpoint(trainer, checkpoint._monitor_candidates(trainer))


def is_written(checkpoint: ModelCheckpoint, trainer: L.Trainer) -> bool:
    """Whether `last.ckpt` is of the trainer's present step."""
    return bool(
        checkpoint._last_checkpoint_saved
        and checkpoint._last_global_step_saved == trainer.global_step
    )


def stand_behind_batch(trainer: L.Trainer, batches: int) -> None:
    """Let the loop stand where checkpoints are written: behind a batch, before it counts.

    ``batches`` were read since that one, and are to be read again; the one that failed is not
    among them.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    for progress in (loop.batch_progress.total, loop.batch_progress.current):
        progress.completed -= batches
        progress.ready = progress.started = progress.processed = progress.completed
        progress.completed -= bool(progress.completed)
    if loop.batch_progress.total.ready:
        loop._batches_that_stepped -= 1  # the axis of what is logged


def is_played_elsewhere(trainer: L.Trainer) -> bool:
    """Whether the processes that play were started by this one, which has no counts of theirs."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def signals_of_ours(trainer: L.Trainer, wanted: Sequence[signal.Signals]) -> list[signal.Signals]:
    """Those of some signals that Lightning does not need: SLURM's for a requeue stays its own."""
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return [*wanted]
    return [signum for signum in wanted if signum != environment.requeue_signal]


def has_launcher(trainer: L.Trainer) -> bool:
    """Whether another process has started this one, and passes on what signals it gets.

    A terminal sends Ctrl+C to all of them besides, so that it comes twice.
    """
    launcher = trainer.strategy.launcher  # which those that it has started have, too
    has_started = isinstance(launcher, _SubprocessScriptLauncher) and bool(launcher.procs)
    return "LOCAL_RANK" in os.environ and not has_started


def send_to_children(trainer: L.Trainer, signum: int) -> None:
    """Send a signal to the processes that this one has started.

    Raises:
        StoppedBySignal: they have not begun yet.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher) and not launcher.procs:
        raise StoppedBySignal(signum)
    if isinstance(launcher, _MultiProcessingLauncher | _SubprocessScriptLauncher):
        launcher.kill(signal.Signals(signum))


def failed_child(trainer: L.Trainer, seconds: float = 0) -> tuple[int, int] | None:
    """A process that this one has started, and that has failed, and its exit code; None without.

    It is waited for so long.
    """
    launcher, ends = trainer.strategy.launcher, time.monotonic() + seconds
    while isinstance(launcher, _SubprocessScriptLauncher):
        for number, process in enumerate(launcher.procs, trainer.global_rank + 1):
            if code := process.poll():
                return number, int(code)
        if time.monotonic() > ends:
            break
        time.sleep(0.05)
    return None


def codes_of_launched(trainer: L.Trainer) -> list[int]:
    """The exit codes of the processes that play, where this one has started them and does not."""
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _MultiProcessingLauncher):
        return []
    return [process.exitcode for process in launcher.procs if process.exitcode is not None]


def parent_process(trainer: L.Trainer) -> int | None:
    """The process of the run that has started this one of it; None where something else has."""
    environment = trainer._accelerator_connector.cluster_environment
    started = isinstance(environment, LightningEnvironment) and has_launcher(trainer)
    return os.getppid() if started and not is_played_elsewhere(trainer) else None


def end_children(trainer: L.Trainer) -> None:
    """Kill the processes of the run that this one of it has started."""
    if not is_played_elsewhere(trainer):
        send_to_children(trainer, signal.SIGKILL)


def process_group_store(prefix: str, timeout: timedelta) -> Store:
    """The store that the processes of a group share, for a thread of its own, and with its keys."""
    store: Any = _get_default_store()
    store = store.clone()
    store.set_timeout(timeout)
    return PrefixStore(prefix, store)


def exchanges_begun() -> int:
    """How many exchanges between all processes this one has begun; who is behind has fewer."""
    group: Any = _get_default_group()
    return int(group._get_sequence_number_for_group())


def raise_process_group_time_out(trainer: L.Trainer, seconds: float) -> None:
    """Let processes wait for each other for so long, where nobody has given a time-out."""
    strategy: Any = trainer.strategy
    if getattr(strategy, "_timeout", None) == default_pg_timeout:
        strategy._timeout = max(default_pg_timeout, timedelta(seconds=seconds))
