"""Pairs of responses with a preference, for the training of preference models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from nlhf_zoo.data.stream import EpochBatches, Loaded, TextData, loader
from nlhf_zoo.data.texts.formats import PairFormat, refuse_format
from nlhf_zoo.data.texts.pair_rows import (
    EXAMPLE,
    Columns,
    PairRow,
    divided,
    fingerprint,
    pairs_of,
    prompt_keys,
    read_pairs,
)
from nlhf_zoo.data.texts.row_source import Dropped, RowSource, Unusable
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
        return len(self.probability)

    def swapped(self) -> Pairs:
        """The same pairs in the other order."""
        return replace(self, first=self.second, second=self.first, probability=1 - self.probability)

    def to(self, device: torch.device | str) -> Pairs:
        """These pairs on another device (Lightning moves batches by this method)."""
        return replace(self, probability=self.probability.to(device))


class _ResumableLoader(DataLoader[Pairs]):
    """A loader with nothing to save: its place is the trainer's count of batches.

    Lightning warns of resuming with a loader that has neither method.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing, for the trainer counts the batches."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


@final
class PreferencePairs(TextData[list[PairRow]]):
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
        path: a .jsonl or .json file of one JSON object a line, or a .json file of a list of them;
            or a folder or a name on the hub, for the `datasets` library.
        batch_size: pairs of a training step in one process.
        split: of a data set.
        name: configuration of a data set on the hub or in a folder.
        columns: what the rows call the parts of a pair.
        unusable: refuse or drop what nothing can be learnt or measured from: rows whose responses
            are equal, or one of which is empty, with an empty prompt, with conversations that
            differ earlier and the like, and validation pairs whose prompt is trained on. What is
            dropped is counted by its reason.
        format: columns, or what others publish: hh (dialogues as text, of Human and Assistant),
            sharegpt (messages of `from` and `value`), arena (two answers and their `winner`; a tie
            is the probability 1/2).
        limit: read the first rows only.
        shuffle: draw a new order for each pass.
        seed: of these orders, and of the prompts that are held out.
        validation_path: where the validation pairs are kept; null for `path`.
        validation_split: split of the validation pairs; null for train.
        num_validation: how many prompts are validated on, with all of their pairs: the first of the
            validation pairs, null for all; without `validation_path` and `validation_split`, so
            many that are drawn from the training pairs, and not trained on.
    """

    what = "pairs"
    loader_kind = _ResumableLoader

    def __init__(
        self,
        path: str,
        batch_size: int,
        split: str = "train",
        name: str | None = None,
        columns: Columns = _COLUMNS,
        unusable: Unusable = "refuse",
        format: PairFormat = "columns",  # the option's name
        limit: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        validation_path: str | None = None,
        validation_split: str | None = None,
        num_validation: int | None = None,
    ) -> None:
        Dropped(unusable)
        refuse_format(format, PairFormat, columns=columns != _COLUMNS)
        source = RowSource(path, split, name, limit, self.what, EXAMPLE)
        super().__init__(
            source, batch_size, shuffle, seed, validation_path, validation_split, num_validation
        )
        self.columns = columns
        self.unusable = unusable
        self.format = format

    def load(self, world_size: int = 1) -> None:
        """Read and check all pairs, which ``world_size`` processes share, unless this is done.

        Raises:
            UserError: a pair cannot be used, or a training step takes more than there are.
        """
        if self._loaded is None:
            self._loaded = self._load()
        self.refuse_large_step(world_size)
        validation = self.loaded.validation
        if validation is not None and len(validation) < world_size:
            raise UserError(
                f"{len(validation)} validation pairs cannot be shared among {world_size} "
                "processes: give more of them"
            )

    @override
    def look_at(self, source: RowSource) -> None:
        for _ in pairs_of(source.rows(), self.columns, Dropped(self.unusable), self.format):
            pass

    @override
    def setup(self, stage: str) -> None:
        self.load(self.trainer.world_size)
        super().setup(stage)

    @property
    def training_pairs(self) -> list[PairRow]:
        """What is trained on, in the order of its rows."""
        self.load()
        return self.loaded.training

    @property
    def validation_pairs(self) -> list[PairRow] | None:
        """What is held out, in the order of its rows; None for nothing."""
        self.load()
        return self.loaded.validation

    @override
    def batch(self, rows: Sequence[PairRow], places: Sequence[int]) -> Pairs:
        pairs = [rows[place] for place in places]
        return Pairs(
            [pair.conversation for pair in pairs],
            [pair.first for pair in pairs],
            [pair.second for pair in pairs],
            torch.tensor([pair.probability for pair in pairs]),
        )

    @override
    def train_dataloader(self) -> DataLoader[Pairs]:
        trainer, pairs = self.trainer, self.training_pairs
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        batches = EpochBatches(
            len(pairs),
            self.batch_size * trainer.world_size,
            lambda: int(progress.total.processed),
            self.shuffle,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
        )
        places, batch = range(len(pairs)), partial(self.batch, pairs)
        return loader(batch, places, batch_sampler=batches, kind=self.loader_kind)

    def _load(self) -> Loaded[list[PairRow]]:
        training, notes = self._read(self.source)
        num, validation = self.num_validation, None
        if self.validation_source is not None:
            validation = self._read_validation(self.validation_source, training, notes)
        elif num is not None:
            keys = prompt_keys(training)
            if num >= len(keys):
                raise UserError(
                    f"data.num_validation is {num}, which leaves none of {len(keys)} different "
                    "prompts to train on"
                )
            rng = torch.Generator().manual_seed(self.seed)
            order = torch.randperm(len(keys), generator=rng)
            training, validation = divided(training, [keys[place] for place in order[:num]])
        return Loaded(training, validation, notes, fingerprint(training))

    def _read(self, source: RowSource) -> tuple[list[PairRow], list[str]]:
        """The pairs of a source, and what was left out of it, as sentences."""
        dropped = Dropped(self.unusable)
        pairs = read_pairs(source, self.columns, dropped, self.format)
        return pairs, dropped.note(source.path, dropped.reasons.total() + len(pairs))

    def _read_validation(
        self, source: RowSource, training: Sequence[PairRow], notes: list[str]
    ) -> list[PairRow]:
        """Pairs of a source of their own, none of whose prompts is trained on."""
        pairs, dropped = self._read(source)
        notes += dropped
        held_out, trained = divided(pairs, prompt_keys(training))
        if trained and self.unusable == "refuse":
            raise UserError(
                f"{source.where(trained[0].row)} has a prompt that is trained on, too: hold it "
                "out, or set data.unusable to drop to leave such validation pairs out"
            )
        if not held_out:
            raise UserError(f"all prompts of {source.path} ({source.split}) are trained on")
        if trained:
            notes.append(
                f"{source.path}: {len(trained)} of {len(pairs)} pairs have a prompt that is "
                "trained on, and were left out"
            )
        num, keys = self.num_validation, prompt_keys(held_out)
        if num is not None and num > len(keys):
            raise UserError(
                f"data.num_validation is {num}, but the validation pairs have {len(keys)} "
                "different prompts only"
            )
        return divided(held_out, keys[:num])[1]
