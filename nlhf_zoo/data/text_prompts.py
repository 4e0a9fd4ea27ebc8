"""Prompts of text or conversations for the Trainer, from a file or a data set."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, final, get_args

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from nlhf_zoo.data.batches import EndlessBatches
from nlhf_zoo.data.texts.encoded_prompts import (
    EncodedPrompts,
    Encoder,
    LengthLimit,
    TooLong,
    encode,
)
from nlhf_zoo.data.texts.prompt_rows import PromptSource
from nlhf_zoo.data.validation import (
    NoValidation,
    refuse_below_one,
    refuse_large_step,
    validation_place,
)
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Prompts


@dataclass(frozen=True, slots=True)
class _Part:
    """Prompts of one source.

    Args:
        source: where they are kept.
        prompts: those that are left.
        too_long: how many were cut or left out.
        total: how many rows there are.
    """

    source: PromptSource
    prompts: EncodedPrompts
    too_long: int
    total: int


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Prompts that were read and encoded for a policy.

    Args:
        policy: whose tokens they are.
        parts: what was read, the prompts to train on first.
        training: what is trained on.
        validation: what is held out, None for nothing.
        fingerprint: of what is trained on.
    """

    policy: Encoder
    parts: list[_Part]
    training: EncodedPrompts
    validation: EncodedPrompts | None
    fingerprint: str


@final
class TextPrompts(L.LightningDataModule):
    """Prompts of text or conversations, from a file or a data set, as an endless stream.

    A row's prompt is text, or a conversation: a list of messages, each with `role` (system, user
    or assistant) and `content`, that ends with the user's; the policy applies its tokenizer's
    chat template to it. A prompt's number is that of its row. Oracles get every prompt whole.

    Args:
        path: a .jsonl or .json file of one JSON object a line; or a folder or a name on the hub,
            for the `datasets` library.
        batch_size: prompts of a training step in one process.
        split: of a data set.
        name: configuration of a data set on the hub or in a folder.
        column: what the rows call the prompt.
        as_conversation: make each text a conversation of one message of the user's.
        system: a first message to put before each conversation.
        drop_last_assistant: leave out a last message of the assistant's, which is an answer.
        max_prompt_tokens: of the longest prompt; null for no limit.
        too_long: refuse, truncate (text alone, at the front) or drop longer ones.
        limit: read the first rows only.
        shuffle: draw a new order for each pass.
        seed: of these orders.
        longest_first: give the first pass by falling length, so that memory which does not suffice
            runs out in the first step.
        validation_path: where the validation prompts are kept; null for `path`.
        validation_split: split of the validation prompts; null for train.
        num_validation: the first so many of the validation prompts, null for all; without
            `validation_path` and `validation_split`, so many from the end of the training prompts,
            which are then not trained on.
    """

    def __init__(
        self,
        path: str,
        batch_size: int,
        split: str = "train",
        name: str | None = None,
        column: str = "prompt",
        as_conversation: bool = False,
        system: str | None = None,
        drop_last_assistant: bool = False,
        max_prompt_tokens: int | None = None,
        too_long: TooLong = "refuse",
        limit: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        longest_first: bool = False,
        validation_path: str | None = None,
        validation_split: str | None = None,
        num_validation: int | None = None,
    ) -> None:
        super().__init__()
        refuse_below_one(
            batch_size=batch_size,
            max_prompt_tokens=max_prompt_tokens,
            limit=limit,
            num_validation=num_validation,
        )
        if too_long not in get_args(TooLong):
            raise UserError(f"data.too_long is one of {get_args(TooLong)}, not {too_long!r}")
        if too_long != "refuse" and max_prompt_tokens is None:
            raise UserError(f"data.too_long is {too_long}: set data.max_prompt_tokens")
        if system is not None and not system.strip():
            raise UserError("data.system is an empty message: leave it out")
        self.batch_size = batch_size
        self.as_conversation = as_conversation
        self.system = system
        self.drop_last_assistant = drop_last_assistant
        self.length_limit = LengthLimit(max_prompt_tokens, too_long)
        self.shuffle = shuffle
        self.seed = seed
        self.longest_first = longest_first
        self.num_validation = num_validation
        self.source = PromptSource(path, split, name, column, limit)
        self.validation_source: PromptSource | None = None
        place = validation_place("prompts", path, split, name, validation_path, validation_split)
        if place is not None:
            self.validation_source = PromptSource(*place, column)
        self._loaded: _Loaded | None = None
        self._reported = False
        self._no_validation = NoValidation()

    def load(self, policy: Encoder, world_size: int = 1, shown: bool = False) -> None:
        """Read and encode all prompts, unless this is done.

        Args:
            policy: who encodes them.
            world_size: number of processes that share them.
            shown: show a progress bar where it takes long.

        Raises:
            UserError: a prompt cannot be used, or they cannot be shared so.
        """
        if self._loaded is None or self._loaded.policy is not policy:
            self._loaded = self._load(policy, shown)
        training, validation = self._loaded.training, self._loaded.validation
        refuse_large_step("prompts", len(training), self.batch_size, world_size)
        if validation is not None and len(validation) % world_size:
            raise UserError(
                f"{len(validation)} validation prompts cannot be shared evenly among {world_size} "
                "processes: set data.num_validation to a multiple of that"
            )

    def setup(self, stage: str) -> None:
        """Read and encode the prompts, and say what was cut or left out.

        Raises:
            UserError: they cannot be used.
        """
        trainer = self.trainer
        assert trainer is not None
        policy: Any = trainer.lightning_module.policy  # OnlineGame's
        self.load(policy, trainer.world_size, shown=trainer.is_global_zero)
        assert self._loaded is not None
        if self._loaded.validation is None:
            self._no_validation.begin(trainer, stage, "prompts")
        if trainer.is_global_zero and not self._reported:
            self._report(self._loaded)
        self._reported = True

    def teardown(self, stage: str) -> None:
        """Leave the trainer as it was."""
        self._no_validation.end(self.trainer)

    def train_dataloader(self) -> DataLoader[Prompts]:
        """The endless stream."""
        trainer, loaded = self.trainer, self._loaded
        assert trainer is not None
        assert loaded is not None
        too_long, cut = loaded.parts[0].too_long, self.length_limit.too_long == "truncate"
        figures: dict[str, float] = {
            "data/truncated": too_long * cut,
            "data/dropped": too_long * (not cut),
        }
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
        game: Any = trainer.lightning_module
        training = loaded.training
        batches = EndlessBatches(
            len(training),
            self.batch_size,
            lambda: int(game.progress.batches),
            self.shuffle,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            game.gradient_steps_per_round,
            trainer.accumulate_grad_batches,
            training.longest_first() if self.longest_first else None,
        )
        return self._loader(training, range(len(training)), batch_sampler=batches)

    def val_dataloader(self) -> DataLoader[Prompts]:
        """The validation prompts, shared among the processes."""
        trainer, loaded = self.trainer, self._loaded
        assert trainer is not None
        assert loaded is not None
        assert loaded.validation is not None  # `setup` has made sure
        share = range(trainer.global_rank, len(loaded.validation), trainer.world_size)
        return self._loader(loaded.validation, share, batch_size=self.batch_size)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint remembers: which prompts, and which tokens, are trained on."""
        return {} if self._loaded is None else {"prompts": self._loaded.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to train on with other prompts.

        Raises:
            UserError: they are others.
        """
        assert self.trainer is not None
        if self.trainer.state.fn == TrainerFn.FITTING and state_dict != self.state_dict():
            raise UserError(
                f"the prompts of {self.source.path}, or the tokens that they become, are not those "
                "that the checkpoint was trained on: restore them, or start a new run"
            )

    def _load(self, policy: Encoder, shown: bool) -> _Loaded:
        parts = [self._read(self.source, policy, 0, shown)]
        training, held_out = parts[0].prompts, self.num_validation
        validation = None
        if self.validation_source is not None:
            # Their numbers go on where those of the training rows end: no prompt has two.
            parts.append(self._read(self.validation_source, policy, parts[0].total, shown))
            validation = parts[1].prompts
            if held_out is not None and held_out > len(validation):
                raise UserError(
                    f"data.num_validation is {held_out}, but there are {len(validation)} "
                    "validation prompts only"
                )
            validation = validation.take(range(len(validation))[:held_out])
        elif held_out is not None:
            left = len(training) - held_out
            if left < 1:
                raise UserError(
                    f"data.num_validation is {held_out}, which leaves none of {len(training)} "
                    "prompts to train on"
                )
            validation = training.take(range(left, len(training)))
            training = training.take(range(left))
        return _Loaded(policy, parts, training, validation, training.fingerprint())

    def _read(self, source: PromptSource, policy: Encoder, offset: int, shown: bool) -> _Part:
        rows = source.read(self.as_conversation, self.system, self.drop_last_assistant)
        if rows.conversations is not None and self.length_limit.too_long == "truncate":
            raise UserError(
                f"{source.path} gives conversations, and one that is cut breaks its chat template: "
                "set data.too_long to drop"
            )
        ids = range(offset, offset + len(rows))
        encoded = encode(policy, rows, ids, source.where, shown)
        kept, too_long = self.length_limit.apply(policy, encoded, source, offset)
        longest = kept.longest_first()[0]
        try:
            policy.encode(kept.batch([longest]))  # is there room for a response?
        except UserError as error:
            where = source.where(kept.ids[longest] - offset)
            raise UserError(f"{where} cannot be answered: {error}") from error
        return _Part(source, kept, too_long, len(rows))

    def _report(self, loaded: _Loaded) -> None:
        limit = self.length_limit
        for part in loaded.parts:
            if part.too_long:
                few = f"{part.source.path}: {part.too_long} of {part.total} prompts"
                cut = f"were cut at the front, to {limit.tokens} tokens"
                left_out = f"have more than {limit.tokens} tokens and were left out"
                what = cut if limit.too_long == "truncate" else left_out
                print(f"{few} {what}", file=sys.stderr)

    @staticmethod
    def _loader(
        prompts: EncodedPrompts,
        places: range,
        batch_size: int = 1,
        batch_sampler: EndlessBatches | None = None,
    ) -> DataLoader[Prompts]:
        # With a generator of its own, making the loader's iterator does not draw from the global
        # random state.
        return DataLoader(
            places,  # type: ignore[arg-type]  # a range is a map-style data set
            batch_size=batch_size,
            batch_sampler=batch_sampler,
            collate_fn=prompts.batch,
            generator=torch.Generator(),
        )
