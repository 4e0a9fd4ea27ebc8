"""Pairs of responses with a preference, for the training of preference models."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, final, get_args

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from nlhf_zoo.data.batches import EndlessBatches
from nlhf_zoo.data.texts.pair_rows import (
    EXAMPLE,
    Columns,
    PairRow,
    Unusable,
    fingerprint,
    first_prompts,
    hold_out,
    read_pairs,
)
from nlhf_zoo.data.texts.row_source import RowSource
from nlhf_zoo.data.validation import (
    NoValidation,
    refuse_below_one,
    refuse_large_step,
    validation_place,
)
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Conversation

_COLUMNS = Columns()


@dataclass(frozen=True, slots=True)
class Pairs:
    """A batch of pairs of responses.

    Args:
        conversations: B prompts; one of plain text is one message of the user's.
        first: B responses.
        second: B other responses to the same prompts.
        probability: P(first > second) [B]; 1 where the first was chosen.
    """

    conversations: Sequence[Conversation]
    first: Sequence[str]
    second: Sequence[str]
    probability: Tensor

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: shapes disagree.
        """
        if self.probability.dim() != 1 or not self.probability.is_floating_point():
            raise ValueError(
                "Pairs.probability must be floating-point [B], not "
                f"{self.probability.dtype} {[*self.probability.shape]}"
            )
        for name in ("conversations", "first", "second"):
            if len(getattr(self, name)) != len(self.probability):
                raise ValueError(
                    f"Pairs.{name} has {len(getattr(self, name))} entries, not "
                    f"{len(self.probability)}"
                )

    def __len__(self) -> int:
        """The number of pairs, B."""
        return len(self.probability)

    def swapped(self) -> Pairs:
        """The same pairs in the other order."""
        return replace(self, first=self.second, second=self.first, probability=1 - self.probability)

    def to(self, device: torch.device | str) -> Pairs:
        """These pairs on another device (Lightning moves batches by this method)."""
        return replace(self, probability=self.probability.to(device))


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Pairs that were read.

    Args:
        training: pairs to train on.
        validation: pairs held out, None for nothing.
        dropped: what was left out of each source, and why, as sentences.
        fingerprint: of what is trained on.
    """

    training: list[PairRow]
    validation: list[PairRow] | None
    dropped: list[str]
    fingerprint: str


@final
class PreferencePairs(L.LightningDataModule):
    """Pairs of responses with labels or probabilities, from a file or a data set.

    A row is {prompt, chosen, rejected}, or {prompt, first, second, probability} with
    P(first > second); all rows of a source are of one kind, and other columns are not read. The
    prompt is text, or a conversation: a list of messages with `role` (system, user or assistant)
    and `content` that ends with the user's. Both responses are texts, or lists of messages that end
    with the assistant's. What stands before that last message must be the same in both, and is the
    prompt; the prompt's column may then be missing, or holds that beginning, or the text of its
    last message. A prompt of text is one message of the user's.

    A label is the probability 1, the chosen response first: who trains on the pairs sees to it that
    their order tells nothing.

    An epoch is a pass over the pairs, rounded up to whole batches: a batch may end one pass and
    begin the next, so that no pair is left out.

    Args:
        path: a .jsonl or .json file of one JSON object a line; or a folder or a name on the hub,
            for the `datasets` library.
        batch_size: pairs of a training step in one process.
        split: of a data set.
        name: configuration of a data set on the hub or in a folder.
        columns: what the rows call the parts of a pair.
        unusable: refuse or drop what nothing can be learnt or measured from: rows whose responses
            are equal, or one of which is empty, and validation pairs whose prompt is trained on.
        limit: read the first rows only.
        shuffle: draw a new order for each pass.
        seed: of these orders, and of the prompts that are held out.
        validation_path: where the validation pairs are kept; null for `path`.
        validation_split: split of the validation pairs; null for train.
        num_validation: how many prompts are validated on, with all of their pairs: the first of the
            validation pairs, null for all; without `validation_path` and `validation_split`, so
            many that are drawn from the training pairs, and not trained on.
    """

    def __init__(
        self,
        path: str,
        batch_size: int,
        split: str = "train",
        name: str | None = None,
        columns: Columns = _COLUMNS,
        unusable: Unusable = "refuse",
        limit: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        validation_path: str | None = None,
        validation_split: str | None = None,
        num_validation: int | None = None,
    ) -> None:
        super().__init__()
        refuse_below_one(batch_size=batch_size, limit=limit, num_validation=num_validation)
        if unusable not in get_args(Unusable):
            raise UserError(f"data.unusable is one of {get_args(Unusable)}, not {unusable!r}")
        self.batch_size = batch_size
        self.columns = columns
        self.unusable = unusable
        self.shuffle = shuffle
        self.seed = seed
        self.num_validation = num_validation
        self.source = RowSource(path, split, name, limit, "pairs", EXAMPLE)
        self.validation_source: RowSource | None = None
        place = validation_place("pairs", path, split, name, validation_path, validation_split)
        if place is not None:
            self.validation_source = RowSource(*place, None, "pairs", EXAMPLE)
        self._loaded: _Loaded | None = None
        self._reported = False
        self._no_validation = NoValidation()

    def load(self, world_size: int = 1) -> None:
        """Read and check all pairs, unless this is done.

        Args:
            world_size: number of processes that share them.

        Raises:
            UserError: a pair cannot be used, or they cannot be shared so.
        """
        if self._loaded is None:
            self._loaded = self._load()
        training, validation = self._loaded.training, self._loaded.validation
        refuse_large_step("pairs", len(training), self.batch_size, world_size)
        if validation is not None and len(validation) < world_size:
            raise UserError(
                f"{len(validation)} validation pairs cannot be shared among {world_size} "
                "processes: give more of them"
            )

    def setup(self, stage: str) -> None:
        """Read the pairs, and say what was left out.

        Raises:
            UserError: they cannot be used.
        """
        trainer = self.trainer
        assert trainer is not None
        self.load(trainer.world_size)
        assert self._loaded is not None
        if self._loaded.validation is None:
            self._no_validation.begin(trainer, stage, "pairs")
        if trainer.is_global_zero and not self._reported:
            for sentence in self._loaded.dropped:
                print(sentence, file=sys.stderr)
        self._reported = True

    def teardown(self, stage: str) -> None:
        """Leave the trainer as it was."""
        self._no_validation.end(self.trainer)

    @property
    def training_pairs(self) -> list[PairRow]:
        """What is trained on, in the order of its rows."""
        self.load()
        assert self._loaded is not None
        return self._loaded.training

    @property
    def validation_pairs(self) -> list[PairRow] | None:
        """What is held out, in the order of its rows; None for nothing."""
        self.load()
        assert self._loaded is not None
        return self._loaded.validation

    def train_dataloader(self) -> DataLoader[Pairs]:
        """An epoch of training pairs, from where training stands."""
        trainer, pairs = self.trainer, self.training_pairs
        assert trainer is not None
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        batches = _Epochs(
            EndlessBatches(
                len(pairs),
                self.batch_size,
                lambda: int(progress.total.processed),
                self.shuffle,
                self.seed,
                trainer.global_rank,
                trainer.world_size,
            )
        )
        return _Loader(pairs, batch_sampler=batches)

    def val_dataloader(self) -> DataLoader[Pairs]:
        """The validation pairs, shared among the processes."""
        trainer, pairs = self.trainer, self.validation_pairs
        assert trainer is not None
        assert pairs is not None  # `setup` has made sure
        share = pairs[trainer.global_rank :: trainer.world_size]
        return _Loader(share, batch_size=self.batch_size)

    test_dataloader = val_dataloader

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint remembers: which pairs are trained on."""
        return {} if self._loaded is None else {"pairs": self._loaded.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to train on with other pairs.

        Raises:
            UserError: they are others.
        """
        assert self.trainer is not None
        if self.trainer.state.fn == TrainerFn.FITTING and state_dict != self.state_dict():
            raise UserError(
                f"the pairs of {self.source.path} are not those that the checkpoint was trained "
                "on: restore them, or start a new run"
            )

    def _load(self) -> _Loaded:
        training, dropped = read_pairs(self.source, self.columns, self.unusable)
        left_out = []
        if dropped:
            left_out.append(
                f"{self.source.path}: {dropped} of {dropped + len(training)} rows have equal "
                "responses or an empty one, and were left out"
            )
        validation = None
        if self.validation_source is not None:
            validation = self._validation(self.validation_source, training, left_out)
        elif self.num_validation is not None:
            training, validation = hold_out(training, self.num_validation, self.seed)
        return _Loaded(training, validation, left_out, fingerprint(training))

    def _validation(
        self, source: RowSource, training: Sequence[PairRow], left_out: list[str]
    ) -> list[PairRow]:
        """Pairs of a source of their own, none of whose prompts is trained on."""
        pairs, dropped = read_pairs(source, self.columns, self.unusable)
        trained = {pair.prompt_key for pair in training}
        kept = [pair for pair in pairs if pair.prompt_key not in trained]
        if self.unusable == "refuse" and len(kept) < len(pairs):
            row = next(pair.row for pair in pairs if pair.prompt_key in trained)
            raise UserError(
                f"{source.where(row)} has a prompt that is trained on, too: hold it out, or set "
                "data.unusable to drop to leave such validation pairs out"
            )
        if not kept:
            raise UserError(f"all prompts of {source.path} ({source.split}) are trained on")
        if dropped or len(kept) < len(pairs):
            left_out.append(
                f"{source.path}: {dropped} of {dropped + len(pairs)} rows have equal responses or "
                f"an empty one, {len(pairs) - len(kept)} a prompt that is trained on, and were "
                "left out"
            )
        return kept if self.num_validation is None else first_prompts(kept, self.num_validation)


class _Epochs(Sampler[list[int]]):
    """An endless stream of batches, cut into epochs of a pass each, rounded up."""

    def __init__(self, stream: EndlessBatches) -> None:
        self.stream = stream

    def __len__(self) -> int:
        """Batches of an epoch of one process."""
        return math.ceil(
            self.stream.num_prompts / (self.stream.batch_size * self.stream.world_size)
        )

    def __iter__(self) -> Iterator[list[int]]:
        """As many batches as an epoch has, from where training stands.

        After a resume within an epoch these are more than are left of it: the trainer counts.
        """
        return islice(iter(self.stream), len(self))


class _Loader(DataLoader[Pairs]):
    """Batches of pairs; it can be resumed, for its place is the trainer's count of batches."""

    def __init__(
        self,
        pairs: Sequence[PairRow],
        batch_size: int = 1,
        batch_sampler: Sampler[list[int]] | None = None,
    ) -> None:
        # With a generator of its own, making the loader's iterator does not draw from the global
        # random state.
        collate: Callable[[Sequence[PairRow]], Pairs] = _collate
        super().__init__(
            pairs,  # type: ignore[arg-type]  # a list is a map-style data set
            batch_size=batch_size,
            batch_sampler=batch_sampler,
            collate_fn=collate,
            generator=torch.Generator(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the trainer's counters are in the checkpoint already."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing, likewise."""


def _collate(pairs: Sequence[PairRow]) -> Pairs:
    return Pairs(
        [pair.conversation for pair in pairs],
        [pair.first for pair in pairs],
        [pair.second for pair in pairs],
        torch.tensor([pair.probability for pair in pairs]),
    )
