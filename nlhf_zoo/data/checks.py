"""Checks of the numbers that data modules take."""

from __future__ import annotations

from nlhf_zoo.errors import UserError


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
