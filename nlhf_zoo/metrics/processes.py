"""Figures of all processes of a run together, and the mean that an optimiser step descends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, final

import lightning as L
import torch
from torch import Tensor
from typing_extensions import TypeVar

from nlhf_zoo.errors import UserError

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean that is to be taken over processes: what is added up, and of how many."""

    total: Tensor
    number: Tensor | int

    @property
    def value(self) -> Tensor:
        """The mean; 0 of nothing."""
        return self.total / torch.as_tensor(self.number).clamp(min=1)


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest number of all processes."""

    value: Tensor


Figure = Mean | Largest
_F = TypeVar("_F", bound=Figure)


def run_folder(trainer: L.Trainer) -> str | None:
    """The folder of a run, in which its checkpoints have theirs; all processes call this.

    It is what ``Trainer.log_dir`` is for loggers that write files. For others, such as W&B's, that
    is the folder of *all* runs, in which each would overwrite the configuration and the history of
    the one before: here it is `save_dir/name/version`, as for checkpoints.

    Returns:
        None where there is none: a logger that has no folder.
    """
    logger = trainer.loggers[0] if trainer.loggers else None
    folder = trainer.log_dir  # asks all processes
    if logger is None or logger.log_dir is not None or folder is None:
        return folder
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    place: str = trainer.strategy.broadcast(str(Path(folder, str(logger.name), version)))
    return place


def gathered(trainer: L.Trainer | None, numbers: Tensor) -> Tensor:
    """The numbers [F] of each process [W, F]; all of them call this alike."""
    if trainer is None or trainer.world_size == 1:
        return numbers[None]
    # By a sum: Lightning's all_gather takes a function that torch warns of.
    each = numbers.new_zeros(trainer.world_size, *numbers.shape)
    each[trainer.global_rank] = numbers
    summed: Tensor = trainer.strategy.reduce(each, reduce_op="sum")
    return summed


def counts_of_each(trainer: L.Trainer | None, numbers: Sequence[int]) -> list[list[int]]:
    """Whole numbers of each process; all of them call this alike."""
    if trainer is None or trainer.world_size == 1:
        return [[*map(int, numbers)]]
    device = trainer.strategy.root_device
    each: list[list[int]] = gathered(
        trainer, torch.tensor([*numbers], dtype=torch.long, device=device)
    ).tolist()
    return each


def sum_over_processes(trainer: L.Trainer | None, numbers: Sequence[int]) -> list[int]:
    """Sums of whole numbers that each process has; all of them call this alike."""
    return summed(counts_of_each(trainer, numbers))


def summed(each: Sequence[Sequence[int]]) -> list[int]:
    """The sum over processes of each of the numbers that they have."""
    return [sum(column) for column in zip(*each, strict=True)]


def refuse_uneven_batches(trainer: L.Trainer) -> None:
    """Refuse loaders that give one process more batches than another, which would wait for ever.

    Raises:
        UserError: how many batches they have; in all processes.
    """
    batches = [trainer.num_training_batches, *trainer.num_val_batches]
    numbers = [-1 if math.isinf(number) else int(number) for number in batches]
    for which, each in zip(count(), zip(*counts_of_each(trainer, numbers), strict=True)):
        if len({*each}) > 1:
            kind = "validation" if which else "training"
            shown = ", ".join("endless" if number < 0 else str(number) for number in each)
            raise UserError(
                f"the processes have {shown} {kind} batches, and would wait for each other: give "
                "each as many, as TextPrompts and TablePrompts do"
            )


def of_all_processes(trainer: L.Trainer | None, figures: Mapping[str, _F]) -> dict[str, _F]:
    """Figures of a process made those of all, by one message; all have them by the same tags."""
    if trainer is None or trainer.world_size == 1 or not figures:
        return dict(figures)
    device = trainer.strategy.root_device
    numbers: list[Tensor | int] = []
    for figure in figures.values():
        own = [figure.total, figure.number] if isinstance(figure, Mean) else [figure.value] * 2
        numbers += own
    scalars = [torch.as_tensor(n, dtype=torch.float64, device=device).detach() for n in numbers]
    pairs = gathered(trainer, torch.stack(scalars)).unflatten(1, (-1, 2))
    found: dict[str, Any] = {}
    for number, (tag, figure) in enumerate(figures.items()):
        first, second = pairs[:, number].unbind(1)
        is_mean = isinstance(figure, Mean)
        found[tag] = Mean(first.sum(), second.sum()) if is_mean else Largest(first.amax())
    return found


def objects_of_each(trainer: L.Trainer | None, own: _T) -> list[_T]:
    """What each process has, pickled on the way; all of them call this alike."""
    if trainer is None or trainer.world_size == 1:
        return [own]
    each: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(each, own)
    return each


@final
class StepMean:
    r"""The mean of a loss over all rows of an optimiser step that have one.

    Those are the rows of all W processes, and of each of the training steps whose gradients are
    accumulated:

    .. math:: L = \frac{\sum_{a, r, i} \ell_{a r i}}{\sum_a n_a}

    with :math:`n_a` the rows of training step a that have a loss, in all processes together. What
    is added up by a Trainer is another mean, over processes and over A training steps, and the
    n of later steps are not known yet. So a process takes :math:`W \sum_i \ell_{a r i} / n_1`, and
    what its gradients lack, :math:`A n_1 / \sum_a n_a`, multiplies them before they are clipped. It
    is 1, and nothing is multiplied, where each training step counts as much as the first.
    """

    def __init__(self) -> None:
        self._first = 1  # n_1
        self._all = 0  # sum_a n_a

    def take(
        self, trainer: L.Trainer | None, own: Mean, figures: Mapping[str, Figure], begins: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss along whose gradient a process goes, and what is logged of all of them.

        Args:
            trainer: who runs the processes; all of them call this alike.
            own: this process's losses of a training step, with gradient, and how many there are.
            figures: what else is logged of it.
            begins: whether this is the first training step of an optimiser step.

        Returns:
            the loss, and the figures by their tags, among them the mean of this training step's
            losses as `train/loss`.
        """
        found = of_all_processes(trainer, {"train/loss": own, **figures})
        all_losses = found["train/loss"]
        assert isinstance(all_losses, Mean)
        number = int(all_losses.number)
        if begins:
            self._first, self._all = max(number, 1), 0
        self._all += number
        processes = 1 if trainer is None else trainer.world_size
        total = own.total if processes == 1 else own.total * processes
        return total / self._first, {tag: figure.value.detach() for tag, figure in found.items()}

    def complete(self, optimizer: torch.optim.Optimizer, accumulate: int) -> None:
        """Multiply the gradients by what they lack, before they are clipped.

        Args:
            optimizer: which is about to step.
            accumulate: A, training steps that the Trainer's mean is over.
        """
        if self._all in (0, accumulate * self._first):
            return
        for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
            if parameter.grad is not None:
                parameter.grad.mul_(accumulate * self._first / self._all)
