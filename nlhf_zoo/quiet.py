"""Lightning, without what it says of seeds, devices, loaders and its other products."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning says nothing about seeds, devices, loaders and its other products."""
    names = ("lightning.pytorch", "lightning.fabric")
    loggers = [logging.getLogger(n + end) for n in names for end in ("", ".utilities.rank_zero")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # `main` is given the arguments that came from the process: there are no others
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            # a table of games needs no worker processes
            warnings.filterwarnings("ignore", message=r"The '\w+_dataloader' does not have many")
            # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
            # a run that resumes finds its own checkpoint
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not")
            # in closed form nothing is optimised, and what is saved is what was played
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optim")
            # and one that was moved lies elsewhere
            warnings.filterwarnings("ignore", message="The dirpath has changed")
            warnings.filterwarnings("ignore", message="GPU available but not used")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
