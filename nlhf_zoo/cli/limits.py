"""Numbers of a Trainer that mean nothing, and runs that would play nothing or wait for ever."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from nlhf_zoo.callbacks import Budget
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame

# The least that an option of the Trainer may be; Lightning 2.6 takes less, and fails later or does
# something else.
_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "devices": -1,
    "gradient_clip_val": 0,
    "limit_predict_batches": 0,
    "limit_test_batches": 0,
    "limit_train_batches": 0,
    "limit_val_batches": 0,
    "log_every_n_steps": 0,
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "overfit_batches": 0,
    "reload_dataloaders_every_n_epochs": 0,
    "val_check_interval": 0,
}
_MOST = {"devices": 4096, "num_nodes": 65536}  # each is made, or waited for
# Those that end a run before its first step where they are 0.
_ENDS = ("max_epochs", "max_steps", "limit_train_batches")
_LONGEST_NAME = 200  # characters of a run's name; file systems take 255 bytes


def refuse_numbers(trainer: Mapping[str, Any], trains: bool) -> None:
    """Refuse options of the Trainer that mean nothing, before it is made.

    Args:
        trainer: its options, as they were given.
        trains: whether there is to be anything to train.

    Raises:
        UserError: which one it is, and the least it may be.
    """
    for name, least in _LEAST.items():
        value = trainer.get(name)
        if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
            value = int(value)  # as devices are given on a command line
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not math.isfinite(value) or value < least:
            raise UserError(f"trainer.{name} must be at least {least}, but it is {value}")
        if value > (most := _MOST.get(name, sys.maxsize)):
            raise UserError(f"trainer.{name} must be at most {most}, but it is {value}")
        if name == "val_check_interval" and value == 0:
            raise UserError("trainer.val_check_interval must be above 0, but it is 0")
        if trains and name in _ENDS and value == 0:
            raise UserError(
                f"trainer.{name} is 0, so that nothing would be played: leave it out, or give more"
            )


def refuse_idle(trainer: L.Trainer, game: OnlineGame) -> None:
    """Refuse a budget that does not allow a single round; for a run that begins.

    Raises:
        UserError: what the budget is, and what a round takes.
    """
    for callback in list(trainer.callbacks):  # type: ignore[attr-defined]  # its connector's
        if not isinstance(callback, Budget):
            continue
        if callback.rounds == 0:
            raise UserError("the budget is of 0 rounds, so that nothing would be played: give more")
        needed = game.queries_per_round() + game.algorithm.adaptive  # whose first product is more
        if callback.queries is not None and callback.queries < needed:
            raise UserError(
                f"the budget is of {callback.queries} queries for each prompt, but a round takes "
                f"{needed}, so that nothing would be played: give more"
            )


def refuse_waiting(trainer: L.Trainer) -> None:
    """Refuse several machines where nothing says how they find each other: each would wait.

    Raises:
        UserError: what to set.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    alone = isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ
    if trainer.num_nodes > 1 and alone:
        raise UserError(
            f"trainer.num_nodes is {trainer.num_nodes}, but nothing says where the others are: set "
            "MASTER_ADDR, MASTER_PORT and NODE_RANK on each, start it by torchrun or SLURM, or set "
            "num_nodes to 1"
        )


def refuse_names(trainer: L.Trainer) -> None:
    """Refuse a name or a version of a run that leads out of its logger's folder, or is no name.

    Raises:
        UserError: which one it is.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger | TensorBoardLogger):
            continue
        folder = Path(logger.save_dir).absolute()
        place = folder
        for option, value in (("name", logger.name), ("version", logger.version)):
            text = "" if value is None else str(value)
            place = place / text
            what = f"trainer.logger.{option} {text[:60]!r}"
            if "\0" in text or len(text) > _LONGEST_NAME:
                raise UserError(f"{what} cannot be the name of a folder: give a shorter, plain one")
            if not Path(os.path.normpath(place)).is_relative_to(os.path.normpath(folder)):
                raise UserError(
                    f"{what} leads out of save_dir, {logger.save_dir}: set save_dir itself"
                )


def planned_steps(trainer: L.Trainer, game: L.LightningModule) -> int | None:
    """Optimiser steps of a run by its budgets, at most; None where these are not in steps."""
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    for callback in list(trainer.callbacks):  # type: ignore[attr-defined]  # likewise
        if isinstance(callback, Budget) and isinstance(game, OnlineGame):
            rounds = [] if callback.rounds is None else [callback.rounds]
            if callback.queries is not None:
                rounds.append(callback.queries // max(1, game.queries_per_round()))
            limits += [each * game.gradient_steps_per_round for each in rounds]
    return min(limits, default=None)


def refuse_empty(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Refuse a run from the start that has ended without a step, for whatever reason.

    Raises:
        UserError: what may have ended it.
    """
    steps = module.progress.batches if isinstance(module, OnlineGame) else trainer.global_step
    if not steps:
        given = trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches
        names = ("max_epochs", "max_steps", "limit_train_batches")
        ends = ", ".join(f"{name} {value}" for name, value in zip(names, given, strict=True))
        raise UserError(
            f"nothing was played, for the Trainer ended the run before its first step ({ends}): "
            "give it more"
        )
