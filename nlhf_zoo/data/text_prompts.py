"""Prompts of text or conversations for the Trainer, from a file or a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, final, get_args

import torch
from torch.utils.data import DataLoader
from typing_extensions import override

from nlhf_zoo.data.stream import (
    Loaded,
    TextData,
    game_batches,
    loader,
    or_stand_in,
    refuse_below_one,
)
from nlhf_zoo.data.texts.conversations import (
    as_conversation,
    as_conversations,
    checked_prompt,
    last_messages,
    message,
)
from nlhf_zoo.data.texts.encoded_prompts import EncodedPrompts, Encoder, TooLong, encode, limited
from nlhf_zoo.data.texts.formats import PromptFormat, hint, prompt_of, refuse_format
from nlhf_zoo.data.texts.row_source import Dropped, Row, RowSource, Unusable, kind
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Conversation, Prompts

_SHAPES = get_args(PromptFormat)


@final
class TextPrompts(TextData[EncodedPrompts]):
    """Prompts of text or conversations, from a file or a data set, as an endless stream.

    A row's prompt is text, or a conversation: a list of messages, each with `role` (system, user
    or assistant) and `content`, that ends with the user's; the policy applies its tokenizer's
    chat template to it. A prompt's number is that of its row. Oracles get every prompt whole.

    Args:
        path: a .jsonl or .json file of one JSON object a line, or a .json file of a list of them;
            or a folder or a name on the hub, for the `datasets` library.
        batch_size: prompts of a training step in one process.
        split: of a data set.
        name: configuration of a data set on the hub or in a folder.
        column: what the rows call the prompt.
        format: columns, or what others publish, whose prompts are conversations without their last
            answer: messages, hh (dialogues as text, of Human and Assistant), sharegpt (messages of
            `from` and `value`), arena (two answers and their `winner`).
        unusable: refuse or drop rows that cannot be a prompt: those that are empty, do not end with
            the user's message and the like. What is dropped is counted by its reason.
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

    what = "prompts"
    derived = ", or the tokens that they become,"

    def __init__(
        self,
        path: str,
        batch_size: int,
        split: str = "train",
        name: str | None = None,
        column: str = "prompt",
        format: PromptFormat = "columns",  # the option's name
        unusable: Unusable = "refuse",
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
        refuse_below_one(max_prompt_tokens=max_prompt_tokens)
        if too_long not in get_args(TooLong):
            raise UserError(f"data.too_long is one of {get_args(TooLong)}, not {too_long!r}")
        if too_long != "refuse" and max_prompt_tokens is None:
            raise UserError(f"data.too_long is {too_long}: set data.max_prompt_tokens")
        if system is not None and not system.strip():
            raise UserError("data.system is an empty message: leave it out")
        Dropped(unusable)
        refuse_format(format, PromptFormat, column=column != "prompt")
        source = RowSource(path, split, name, limit, self.what, f'{{"{column}": "..."}}')
        super().__init__(
            source, batch_size, shuffle, seed, validation_path, validation_split, num_validation
        )
        self.column = column
        self.format = format
        self.unusable = unusable
        self.as_conversation = as_conversation
        self.system = system
        self.drop_last_assistant = drop_last_assistant
        self.max_prompt_tokens = max_prompt_tokens
        self.too_long = too_long
        self.longest_first = longest_first
        self._policy: Encoder | None = None  # whose tokens were read
        self._num_too_long = 0  # of the training rows
        self._num_unusable = 0  # of them

    def load(self, policy: Encoder, world_size: int = 1, shown: bool = False) -> None:
        """Read all prompts and let ``policy`` encode them, unless this is done.

        ``world_size`` processes share them; ``shown`` shows a progress bar where it takes long.

        Raises:
            UserError: a prompt cannot be used, or a training step takes more than there are.
        """
        if self._policy is not policy:
            self._loaded = self._load(policy, shown)
            self._policy = policy
        self.refuse_large_step(world_size)

    @override
    def look_at(self, source: RowSource) -> None:
        shape, dropped = self.format, Dropped(self.unusable)
        for _ in _prompts_of(source, self.column, self.drop_last_assistant, shape, dropped):
            pass

    @override
    def setup(self, stage: str) -> None:
        game: Any = self.trainer.lightning_module  # OnlineGame
        self.load(game.policy, self.trainer.world_size, shown=self.trainer.is_global_zero)
        super().setup(stage)

    @override
    def batch(self, rows: EncodedPrompts, places: Sequence[int]) -> Prompts:
        return or_stand_in(rows.batch, places)

    @override
    def train_dataloader(self) -> DataLoader[Prompts]:
        trainer, training = self.trainer, self.loaded.training
        truncated = self._num_too_long if self.too_long == "truncate" else 0
        dropped = self._num_too_long - truncated + self._num_unusable
        figures: dict[str, float] = {"data/truncated": truncated, "data/dropped": dropped}
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
        first_pass = training.longest_first() if self.longest_first else None
        batches = game_batches(
            trainer,
            len(training),
            self.batch_size * trainer.world_size,
            self.shuffle,
            self.seed,
            first_pass,
        )
        return loader(training.batch, range(len(training)), batch_sampler=batches)

    @override
    def predict_dataloader(self) -> DataLoader[Prompts]:
        rows = self.loaded.validation  # all of them in each process, the first of which prints them
        assert rows is not None  # `setup` has made sure
        return loader(rows.batch, range(len(rows)), self.batch_size)

    def _load(self, policy: Encoder, shown: bool) -> Loaded[EncodedPrompts]:
        notes: list[str] = []
        training, total, self._num_too_long = self._read(self.source, policy, 0, shown, notes)
        self._num_unusable = (
            total - len(training) - (self._num_too_long if self.too_long == "drop" else 0)
        )
        num, validation = self.num_validation, None
        if self.validation_source is not None:
            # Their numbers go on where those of the training rows end: no prompt has two.
            validation, _, _ = self._read(self.validation_source, policy, total, shown, notes)
            if num is not None and num > len(validation):
                raise UserError(
                    f"data.num_validation is {num}, but there are {len(validation)} validation "
                    "prompts only"
                )
            validation = validation.take(range(len(validation))[:num])
        elif num is not None:
            left = len(training) - num
            if left < 1:
                raise UserError(
                    f"data.num_validation is {num}, which leaves none of {len(training)} prompts "
                    "to train on"
                )
            validation = training.take(range(left, len(training)))
            training = training.take(range(left))
        return Loaded(training, validation, notes, training.fingerprint())

    def _read(
        self, source: RowSource, policy: Encoder, offset: int, shown: bool, notes: list[str]
    ) -> tuple[EncodedPrompts, int, int]:
        """The prompts of a source that are left, how many rows it has, and how many are too long.

        The number of the first row's prompt is ``offset``; what is cut or left out is noted.
        """
        dropped = Dropped(self.unusable)
        prompts = read_prompts(
            source, self.column, self.drop_last_assistant, offset, self.format, dropped
        )
        total = len(prompts) + dropped.reasons.total()
        notes += dropped.note(source.path, total)
        make = self.as_conversation and self.format == "columns"  # others are conversations
        prompts = in_conversation(prompts, source.path, make, self.system)
        if prompts.conversations is not None and self.too_long == "truncate":
            raise UserError(
                f"{source.path} gives conversations, and one that is cut breaks its chat template: "
                "set data.too_long to drop"
            )
        encoded = encode(policy, prompts, source, shown, offset)
        limit, num_too_long = self.max_prompt_tokens, 0
        if limit is not None:
            encoded, num_too_long = limited(policy, encoded, source, limit, self.too_long, offset)
        if num_too_long:
            done = f"have more than {limit} tokens and were left out"
            if self.too_long == "truncate":
                done = f"were cut at the front, to {limit} tokens"
            notes.append(f"{source.path}: {num_too_long} of {len(prompts)} prompts {done}")
        longest = encoded.longest_first()[0]
        try:
            policy.encode(encoded.batch([longest]))  # is there room for a response?
        except UserError as error:
            where = source.where(int(encoded.prompts.ids[longest]) - offset)
            raise UserError(f"{where} cannot be answered: {error}") from error
        return encoded, total, num_too_long


def read_prompts(
    source: RowSource,
    column: str,
    drop_last_assistant: bool = False,
    offset: int = 0,
    shape: PromptFormat = "columns",
    dropped: Dropped | None = None,
) -> Prompts:
    """Read and check the rows of a source; ``offset`` is the number of the first row's prompt.

    A last message of the assistant's is an answer, which ``drop_last_assistant`` leaves out, and a
    ``shape`` other than columns. Rows that cannot be prompts are ``dropped``.

    Raises:
        UserError: a row cannot be a prompt, or there is none.
    """
    dropped = Dropped("refuse") if dropped is None else dropped
    read = [*_prompts_of(source, column, drop_last_assistant, shape, dropped)]
    if not read:
        rows = "row that can be used" if dropped.reasons.total() else "rows"
        raise UserError(f"{source.path} has no {rows}: there is no prompt to play")
    prompts = [prompt for _, prompt in read]
    if drop_last_assistant and isinstance(prompts[0], str):
        raise UserError(
            f"data.drop_last_assistant is for conversations, but {source.path} holds text"
        )
    ids = torch.tensor([number for number, _ in read]) + offset
    return Prompts(ids, text=last_messages(prompts), conversations=as_conversations(prompts))


def _prompts_of(
    source: RowSource, column: str, drop_last_assistant: bool, shape: PromptFormat, dropped: Dropped
) -> Iterator[tuple[int, str | Conversation]]:
    """The numbers of rows and their prompts, all of them texts or all conversations."""
    is_text: bool | None = None
    for row in source.rows():
        with dropped.row():
            prompt = _prompt(row, column, drop_last_assistant, shape)
            if is_text not in (None, isinstance(prompt, str)):
                raise row.error(
                    f"is {kind(prompt)}, unlike the rows before it: let all rows be text, or all "
                    "conversations"
                )
            is_text = isinstance(prompt, str)
            yield row.number, prompt


def _prompt(
    row: Row, column: str, drop_last_assistant: bool, shape: PromptFormat
) -> str | Conversation:
    """The prompt of a row."""
    if shape != "columns":
        return checked_prompt(row, prompt_of(row, shape), "prompt", drop_last_assistant=True)
    if column not in row.values:
        raise row.error(
            f"has no column {column!r}: set data.column to one of "
            f"{', '.join(row.values) or 'its columns (it has none)'}{hint(row, _SHAPES)}"
        )
    remedy = "set data.drop_last_assistant to true to leave it out"
    return checked_prompt(row, row.values[column], repr(column), drop_last_assistant, remedy)


def in_conversation(prompts: Prompts, path: str, make: bool, system: str | None) -> Prompts:
    """Prompts with the messages that options add.

    With ``make``, each text becomes a conversation of one message of the user's; ``system`` is put
    before each conversation. ``path`` is that of their source, for errors.

    Raises:
        UserError: the options do not fit what was read.
    """
    talks = prompts.conversations
    if make:
        if talks is not None:
            raise UserError(
                f"{path} holds conversations already: set data.as_conversation to false"
            )
        talks = [*map(as_conversation, prompts.text or ())]
    if system is not None:
        if talks is None:
            raise UserError(
                f"data.system begins conversations, but {path} holds text: "
                "set data.as_conversation to true"
            )
        if any(talk[0]["role"] == "system" for talk in talks):
            raise UserError(
                f"conversations of {path} begin with a system message of their own: leave out "
                "data.system"
            )
        talks = [[message("system", system), *talk] for talk in talks]
    return replace(prompts, conversations=talks)
