"""Where rows to validate on are kept, and the validation that is left out where there are none."""

from __future__ import annotations

from typing import final

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from nlhf_zoo.errors import UserError


def validation_place(
    what: str,
    path: str,
    split: str,
    name: str | None,
    validation_path: str | None,
    validation_split: str | None,
) -> tuple[str, str, str | None] | None:
    """Where validation rows of their own are kept.

    Args:
        what: what the rows are, in the plural.
        path: of the training rows.
        split: likewise.
        name: of their configuration; other data have none.
        validation_path: option of the data; None takes ``path``.
        validation_split: option of the data; None takes "train".

    Returns:
        path, split and configuration; None where neither option is given.

    Raises:
        UserError: they are the training rows.
    """
    if validation_path is None and validation_split is None:
        return None
    place = path if validation_path is None else validation_path
    its_split = validation_split or "train"
    if (place, its_split) == (path, split):
        raise UserError(
            f"the validation {what} are those of training, {path} ({split}): set "
            "data.num_validation alone to hold some prompts out"
        )
    return place, its_split, name if place == path else None


@final
class NoValidation:
    """Training without validation, where there is nothing to validate on.

    Lightning warns of a loader without batches, and takes no other for none: the trainer is told to
    validate on no batch, until `end`.
    """

    def __init__(self) -> None:
        self._limit: int | float | None = None  # the trainer's own

    def begin(self, trainer: L.Trainer, stage: str, what: str) -> None:
        """Switch validation off.

        Args:
            trainer: whose.
            stage: of the trainer.
            what: what there is none of, in the plural.

        Raises:
            UserError: validation is all that was asked for.
        """
        if stage != TrainerFn.FITTING:
            raise UserError(
                f"there are no validation {what}: set data.validation_path, "
                "data.validation_split or data.num_validation"
            )
        if self._limit is None:
            self._limit = trainer.limit_val_batches
        trainer.limit_val_batches = 0

    def end(self, trainer: L.Trainer | None) -> None:
        """Leave the trainer as it was."""
        if self._limit is not None and trainer is not None:
            trainer.limit_val_batches = self._limit
            self._limit = None


def refuse_below_one(**options: int | None) -> None:
    """Refuse options of the data that are neither None nor at least 1.

    Raises:
        UserError: one is below.
    """
    for name, number in options.items():
        if number is not None and number < 1:
            raise UserError(f"data.{name} must be at least 1, but it is {number}")


def refuse_large_step(what: str, number: int, batch_size: int, world_size: int) -> None:
    """Refuse a training step that takes more than there is.

    Args:
        what: what is trained on, in the plural.
        number: how many there are.
        batch_size: how many a training step takes in one process.
        world_size: number of processes.

    Raises:
        UserError: it does.
    """
    if batch_size * world_size > number:
        raise UserError(
            f"{world_size} x {batch_size} {what} (processes x data.batch_size) make a training "
            f"step, but there are {number} {what} only to train on"
        )
