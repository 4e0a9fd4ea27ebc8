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
            # a language model is scored without dropout: it is in evaluation on purpose
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
            # the name of transformers 5.0 for `activation_checkpointing_enable` of 5.23
            warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is depr")
            # peft 0.21 asks transformers 5.23 for an older name of `is_activation_checkpointing`
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            # a language model stays in evaluation, for dropout is off in every log-probability
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
