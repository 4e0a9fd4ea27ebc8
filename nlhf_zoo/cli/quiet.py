"""Lightning without what a game does not want: of its messages, and of its Trainer's defaults."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Options of every Trainer that plays a game; and of one that shows and leaves nothing of its own.
GAME_TRAINER: dict[str, Any] = {
    "max_epochs": -1,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
}
SILENT_TRAINER = GAME_TRAINER | {"enable_checkpointing": False, "enable_progress_bar": False}

_LOGGERS = [
    logging.getLogger(name + end)
    for name in ("lightning.pytorch", "lightning.fabric")
    for end in ("", ".utilities.rank_zero")
]
# Says of each process that ends which others it ends; what has ended it is said by the command.
_SPAWN = logging.getLogger("torch.multiprocessing.spawn")
# Warnings that say nothing to a user here, each with the reason.
_SILENT = (
    # `main` is given the arguments that came from the process: there are no others
    "LightningCLI's args parameter",
    # a table of games needs no worker processes
    r"The '\w+_dataloader' does not have many",
    # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    r"`isinstance\(treespec, LeafSpec\)`",
    # a run that resumes finds its own checkpoint, and one that was moved lies elsewhere
    "Checkpoint directory .* exists and is not",
    "The dirpath has changed",
    # in closed form nothing is optimised, and what is saved is what was played
    "Using ModelCheckpoint with manual optim",
    "GPU available but not used",
    # a language model stays in evaluation, for dropout is off in every log-probability
    r"Found \d+ module\(s\) in eval mode",
    # the name of transformers 5.0 for `activation_checkpointing_enable` of 5.23
    "`gradient_checkpointing_enable` is depr",
    # peft 0.21 asks transformers 5.23 for an older name of `is_activation_checkpointing`
    "`is_gradient_checkpointing` is deprecated",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning says nothing about seeds, devices, loaders and its other products.

    Nor does the thread that writes TensorBoard's files where it cannot: whoever logs next gets that
    error, and says so.
    """
    levels = {log: log.level for log in (*_LOGGERS, _SPAWN)}
    for log in levels:
        log.setLevel(logging.ERROR if log is _SPAWN else logging.WARNING)
    shown, threading.excepthook = threading.excepthook, _no_events_writer(threading.excepthook)
    try:
        with warnings.catch_warnings():
            for message in _SILENT:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        threading.excepthook = shown
        for log, level in levels.items():
            log.setLevel(level)


def _no_events_writer(shown: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A hook for what ends a thread, that leaves out the one thread's errors of files."""

    def hook(found: Any) -> None:
        writes = "tensorboard" in type(found.thread).__module__
        if not (writes and issubclass(found.exc_type, OSError)):
            shown(found)

    return hook
