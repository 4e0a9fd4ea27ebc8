"""Rows of text as a DataModule gives them: a stream to train on, and others to validate on."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count, islice
from typing import Any, ClassVar, Generic, TypeVar

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Sampler
from typing_extensions import override

from nlhf_zoo.data.texts.row_source import RowSource
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Prompts

_LOOKED_AT = 64  # rows of a source, for their shape
Rows = TypeVar("Rows", bound=Sized)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Rows]):
    """Rows that were read."""

    training: Rows
    validation: Rows | None  # held out, None for nothing
    notes: list[str]  # what was cut or left out of each source, and why, as sentences
    fingerprint: str  # of what is trained on


class TextData(L.LightningDataModule, ABC, Generic[Rows]):
    """Rows of text from a file or a data set, some of which may be held out.

    Reading is the subclass's, which says what the options mean. This class says once what was left
    out, shares the rows among processes, and refuses to resume with others.

    Raises:
        UserError: a number is below one, or the validation rows are those of training.
    """

    trainer: L.Trainer  # Lightning sets it before it calls a hook
    what: ClassVar[str]  # the rows, in the plural
    derived: ClassVar[str] = ""  # what else a fingerprint covers, for errors
    loader_kind: ClassVar[type[DataLoader[Any]]] = DataLoader

    def __init__(
        self,
        source: RowSource,
        batch_size: int,
        shuffle: bool,
        seed: int,
        validation_path: str | None,
        validation_split: str | None,
        num_validation: int | None,
    ) -> None:
        super().__init__()
        refuse_below_one(batch_size=batch_size, limit=source.limit, num_validation=num_validation)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.num_validation = num_validation
        self.source = source
        self.validation_source: RowSource | None = None
        if validation_path is not None or validation_split is not None:
            path = source.path if validation_path is None else validation_path
            split = validation_split or "train"
            if (path, split) == (source.path, source.split):
                raise UserError(
                    f"the validation {self.what} are those of training, {path} ({split}): set "
                    "data.num_validation alone to hold some prompts out"
                )
            # Other data have configurations of their own.
            name = source.name if path == source.path else None
            self.validation_source = replace(source, path=path, split=split, name=name, limit=None)
        self._loaded: Loaded[Rows] | None = None
        self._has_noted = False
        self._limit_val_batches: int | float | None = None  # the trainer's own

    @property
    def loaded(self) -> Loaded[Rows]:
        """The rows that were read and may be trained on."""
        assert self._loaded is not None  # `setup` has made sure
        return self._loaded

    @abstractmethod
    def batch(self, rows: Rows, places: Sequence[int]) -> Any:
        """Some rows as a batch."""

    @abstractmethod
    def look_at(self, source: RowSource) -> None:
        """Check all rows of a source, and keep nothing."""

    def look(self) -> None:
        """Check the first rows of each source, before anything expensive is done.

        Raises:
            UserError: they are not what they should be.
        """
        for source in (self.source, self.validation_source):
            if source is not None:
                rows = _LOOKED_AT if source.limit is None else min(source.limit, _LOOKED_AT)
                self.look_at(replace(source, limit=rows))

    def refuse_large_step(self, world_size: int) -> None:
        """Refuse a training step that takes more rows than there are."""
        number = len(self.loaded.training)
        if self.batch_size * world_size > number:
            raise UserError(
                f"{world_size} x {self.batch_size} {self.what} (processes x data.batch_size) make "
                f"a training step, but there are {number} {self.what} only to train on"
            )

    @override
    def setup(self, stage: str) -> None:
        if self.loaded.validation is None:
            self._switch_validation_off(stage)
        if self.trainer.is_global_zero and not self._has_noted:
            for note in self.loaded.notes:
                print(note, file=sys.stderr)
        self._has_noted = True

    def _switch_validation_off(self, stage: str) -> None:
        """Let the trainer validate on no batch, until `teardown`.

        Lightning warns of a loader without batches, and takes no other for none.
        """
        if stage != TrainerFn.FITTING:
            raise UserError(
                f"there are no validation {self.what}: set data.validation_path, "
                "data.validation_split or data.num_validation"
            )
        if self._limit_val_batches is None:
            self._limit_val_batches = self.trainer.limit_val_batches
        self.trainer.limit_val_batches = 0

    @override
    def teardown(self, stage: str) -> None:
        if self._limit_val_batches is not None:
            self.trainer.limit_val_batches = self._limit_val_batches
            self._limit_val_batches = None

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        rows = self.loaded.validation
        assert rows is not None  # `setup` has made sure
        batches = own_batches(self.trainer, len(rows), self.batch_size)
        batch, places = partial(self.batch, rows), range(len(rows))
        return loader(batch, places, batch_sampler=batches, kind=self.loader_kind)

    test_dataloader = val_dataloader

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self._loaded is None else {self.what: self._loaded.fingerprint}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING and state_dict != self.state_dict():
            raise UserError(
                f"the {self.what} of {self.source.path}{self.derived} are not those that the "
                "checkpoint was trained on: restore them, or start a new run"
            )


def refuse_below_one(**options: int | None) -> None:
    """Refuse options of the data that are neither None nor at least 1."""
    for name, number in options.items():
        if number is not None and number < 1:
            raise UserError(f"data.{name} must be at least 1, but it is {number}")


@dataclass(eq=False)
class EndlessBatches(Sampler[list[int]]):
    """Batches of prompt numbers without end, one pass over all prompts after another.

    It holds no state: pass number and place within it follow from how many batches were consumed,
    so a resumed run sees the batches that the other would have seen, and prefetching does no harm.
    All gradient steps of a round see the same prompts, for what a step writes is meant for the
    prompts of the next.

    The processes share a batch as evenly as they can, without repeats: where it does not divide,
    some have a prompt more. A last batch of a pass that is incomplete is filled from the next pass.
    """

    num_prompts: int
    batch_prompts: int  # of a batch of all processes
    consumed: Callable[[], int]  # batches this process has trained on; asked as iteration begins
    shuffle: bool = False  # a new order for each pass, the same in all processes
    seed: int = 0  # of these orders
    rank: int = 0
    world_size: int = 1  # processes; together they see each prompt once a pass
    # A batch that begins a round, and its place; another one where a round takes longer.
    since: Callable[[], tuple[int, int]] = lambda: (0, 0)
    repeats: int = 1  # gradient steps of a round
    accumulate: int = 1  # batches of one gradient step
    first_pass: Sequence[int] | None = None  # its order, in place of a drawn one
    joined: bool = False  # hand over the batches of a gradient step together, at each training step
    ahead: bool = False  # and behind these, those of the next round

    @override
    def __iter__(self) -> Iterator[list[int]]:
        order = lru_cache(maxsize=1)(self._order)
        share = own_share(self.batch_prompts, self.rank, self.world_size)
        together = range(self.accumulate * (2 if self.ahead else 1))
        for consumed in count(self.consumed()):
            since, place = self.since()
            played, part = divmod(consumed - since, self.repeats * self.accumulate)
            own = together if self.joined else [part % self.accumulate]
            places: list[int] = []
            for each in own:
                first = place + (played * self.accumulate + each) * self.batch_prompts
                places += range(first + share.start, first + share.stop)
            passes = (divmod(place, self.num_prompts) for place in places)
            yield [order(number)[index] for number, index in passes]

    def _order(self, number: int) -> Sequence[int]:
        if number == 0 and self.first_pass is not None:
            return self.first_pass
        if not self.shuffle:
            return list(range(self.num_prompts))
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return [int(i) for i in torch.randperm(self.num_prompts, generator=rng)]


class EpochBatches(EndlessBatches):
    """The same stream cut into epochs of a pass each, rounded up to whole batches.

    An iteration has as many batches as an epoch, from where training stands: after a resume within
    an epoch these are more than are left of it, and the trainer counts.
    """

    def __len__(self) -> int:
        """Batches of an epoch of one process."""
        return math.ceil(self.num_prompts / self.batch_prompts)

    @override
    def __iter__(self) -> Iterator[list[int]]:
        return islice(super().__iter__(), len(self))


def game_batches(
    trainer: L.Trainer,
    num_prompts: int,
    batch_prompts: int,
    shuffle: bool,
    seed: int,
    first_pass: Sequence[int] | None = None,
) -> EndlessBatches:
    """The batches of a game, from where it stands; the arguments are those of `EndlessBatches`.

    A run that goes on with other batches, of more processes or fewer for instance, goes on at the
    place of the stream where it stood: no prompt is left out, and none comes twice in a pass.
    """
    game: Any = trainer.lightning_module  # OnlineGame
    share = own_share(batch_prompts, trainer.global_rank, trainer.world_size)
    game.rollout_prompts = len(share) * trainer.accumulate_grad_batches
    shape = batch_prompts, trainer.accumulate_grad_batches, game.gradient_steps_per_round
    return EndlessBatches(
        num_prompts,
        batch_prompts,
        lambda: int(game.progress.batches),
        shuffle,
        seed,
        trainer.global_rank,
        trainer.world_size,
        partial(_since, game, shape),
        game.gradient_steps_per_round,
        trainer.accumulate_grad_batches,
        first_pass,
        joined=game.reuse is not None,
        ahead=game.reuse is not None and game.rollout.ahead,
    )


def _since(game: Any, shape: tuple[int, int, int]) -> tuple[int, int]:
    """A batch at which a round of the game began, and its place in the stream of prompts.

    ``game.progress.stream`` holds both, with the shape of a round from there on: prompts of a
    batch, batches of an optimiser step, optimiser steps. Where the shape is another one now, that
    is the round under way, as if it had been of the new shape from its start.
    """
    progress = game.progress
    since, place, *was = progress.stream or (0, 0, *shape)
    if tuple(was) != shape:
        prompts, accumulate, steps = was
        rounds, taken = divmod(progress.batches - since, steps * accumulate)
        since = progress.batches - taken // accumulate * shape[1]
        place += rounds * accumulate * prompts
    progress.stream = [since, place, *shape]
    return since, place


def own_share(prompts: int, rank: int, world_size: int) -> range:
    """Which of so many prompts are those of a process; equally many, where that is possible."""
    return range(prompts * rank // world_size, prompts * (rank + 1) // world_size)


def own_batches(trainer: L.Trainer, total: int, batch_size: int) -> list[list[int]]:
    """Places that this process evaluates, in batches: each place is one process's.

    All have as many batches, since they wait for each other in each; where there are no places left
    for one of them, its last batch is empty.
    """
    rank, size = trainer.global_rank, trainer.world_size
    step = batch_size * size
    return [
        [*range(first + rank, min(first + step, total), size)] for first in range(0, total, step)
    ]


def or_stand_in(batch: Callable[[Sequence[int]], Prompts], places: Sequence[int]) -> Prompts:
    """The prompts of some places; of none, one that stands in: all processes draw, or none does."""
    return batch(places) if places else replace(batch([0]), ids=torch.tensor([-1]))


class _Remembering:
    """Makes batches, and gives the last one again: gradient steps of a round see one batch."""

    def __init__(self, batch: Callable[[Sequence[int]], Any]) -> None:
        self._batch = batch
        self._last: tuple[list[int], Any] | None = None

    def __call__(self, places: Sequence[int]) -> Any:
        """The batch of some places."""
        if self._last is None or self._last[0] != [*places]:
            self._last = [*places], self._batch(places)
        return self._last[1]


def loader(
    batch: Callable[[Sequence[int]], Any],
    places: range,
    batch_size: int = 1,
    batch_sampler: Sampler[list[int]] | Sequence[list[int]] | None = None,
    kind: type[DataLoader[Any]] = DataLoader,
) -> DataLoader[Any]:
    """A loader of batches of places; ``batch`` says what stands there."""
    # With a generator of its own, making the loader's iterator does not draw from the global
    # random state.
    return kind(
        places,  # type: ignore[arg-type]  # a range is a map-style data set
        batch_size=batch_size,
        batch_sampler=batch_sampler,
        collate_fn=_Remembering(batch),
        generator=torch.Generator(),
    )
