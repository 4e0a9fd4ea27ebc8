"""Pairs of responses as their owners keep them, checked: rows with labels or probabilities."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from nlhf_zoo.data.texts.conversations import (
    as_conversation,
    checked_prompt,
    checked_response,
    conversation_key,
)
from nlhf_zoo.data.texts.formats import PairFormat, hint, pair_of, refuse_verdict
from nlhf_zoo.data.texts.row_source import Dropped, Row, RowSource
from nlhf_zoo.errors import UserError

if TYPE_CHECKING:  # it takes torch
    from nlhf_zoo.records import Conversation

_SHAPES = get_args(PairFormat)
EXAMPLE = '{"prompt": "...", "chosen": "...", "rejected": "..."}'


@dataclass(frozen=True)  # no slots: jsonargparse reads the defaults by vars()
class Columns:
    """What the rows call the parts of a pair.

    Args:
        prompt: the prompt.
        chosen: the response that was preferred.
        rejected: the other one.
        first: a response, where a row has a probability.
        second: the other one.
        probability: P(first > second).
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    first: str = "first"
    second: str = "second"
    probability: str = "probability"

    def __post_init__(self) -> None:
        names = list(vars(self).values())
        if len({*names}) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"data.columns has the name {twice!r} twice")

    def responses(self, has_label: bool) -> tuple[str, str]:
        """The columns of both responses of a row, with a label or with a probability."""
        return (self.chosen, self.rejected) if has_label else (self.first, self.second)


@dataclass(frozen=True, slots=True)
class PairRow:
    """One pair.

    Args:
        row: its number in the source, from 0.
        conversation: the prompt; one of plain text is one message of the user's.
        first: a response; of labels, the chosen one.
        second: the other.
        probability: P(first > second), 1 of labels.
    """

    row: int
    conversation: Conversation
    first: str
    second: str
    probability: float

    @property
    def prompt_key(self) -> str:
        """The prompt as one text that no other prompt has."""
        return conversation_key(self.conversation)


def read_pairs(
    source: RowSource, columns: Columns, dropped: Dropped, shape: PairFormat = "columns"
) -> list[PairRow]:
    """The pairs of a source, as `pairs_of` gives them.

    Raises:
        UserError: a row is no pair, or there is none.
    """
    if pairs := [*pairs_of(source.rows(), columns, dropped, shape)]:
        return pairs
    rows = "row that can be used" if dropped.reasons.total() else "rows"
    raise UserError(f"{source.path} has no {rows}: there are no pairs to learn from")


def pairs_of(
    rows: Iterable[Row], columns: Columns, dropped: Dropped, shape: PairFormat
) -> Iterator[PairRow]:
    """Read and check the rows; those from which nothing can be learnt are ``dropped``.

    Raises:
        UserError: a row is no pair.
    """
    labelled: bool | None = None
    mapped = vars(columns)
    is_mapped = columns.responses(True) != Columns().responses(True)
    for read in rows:
        with dropped.row():
            row = pair_of(read, shape)
            has_label = _has_label(row, columns)
            if is_mapped and has_label:
                refuse_verdict(row, mapped)
            if labelled not in (None, has_label):
                kinds = ("a probability", "a label")
                raise row.error(
                    f"has {kinds[has_label]}, and the rows before it {kinds[not has_label]}: give "
                    "two files, or make all of them probabilities (a label is the probability 1)"
                )
            labelled = has_label
            pair = _pair(row, columns, has_label)
            _refuse_unusable(row, pair, columns.responses(has_label))
            yield pair


def prompt_keys(pairs: Iterable[PairRow]) -> list[str]:
    """The keys of the different prompts, in the order of their first pairs."""
    return list(dict.fromkeys(pair.prompt_key for pair in pairs))


def divided(pairs: Iterable[PairRow], keys: Iterable[str]) -> tuple[list[PairRow], list[PairRow]]:
    """The pairs of all other prompts and those of some, both in the order of their rows."""
    chosen = {*keys}
    parts: tuple[list[PairRow], list[PairRow]] = ([], [])
    for pair in pairs:
        parts[pair.prompt_key in chosen].append(pair)
    return parts


def fingerprint(pairs: Iterable[PairRow]) -> str:
    """A name for pairs in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        row = [pair.prompt_key, pair.first, pair.second, pair.probability]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _has_label(row: Row, columns: Columns) -> bool:
    """Whether a row says which response was chosen, rather than a probability."""
    label = columns.responses(True)
    probability = (*columns.responses(False), columns.probability)
    found = [name for name in label if name in row.values]
    others = [name for name in probability if name in row.values]
    if found and others:
        raise row.error(
            f"has both {found[0]!r} and {others[0]!r}: give labels or probabilities, and name a "
            "column that is something else in data.columns"
        )
    has_label = bool(found) or not others
    for name in label if has_label else probability:
        if name not in row.values:
            raise _no_column(name, row)
    return has_label


def _pair(row: Row, columns: Columns, has_label: bool) -> PairRow:
    names = columns.responses(has_label)
    (begun, first), (other, second) = (
        checked_response(row, row.values[name], name) for name in names
    )
    if (begun is None) != (other is None):
        raise row.error(
            f"has text and a list of messages as {names[0]!r} and {names[1]!r}: write both in one "
            "way"
        )
    if begun != other:
        raise row.unusable(
            "conversations that differ before their last message",
            f"has conversations as {names[0]!r} and {names[1]!r} that differ before their last "
            "message: they answer no common prompt",
        )
    prompt = _prompt(row, columns, begun or [])
    probability = 1.0 if has_label else _probability(row, columns.probability)
    return PairRow(row.number, prompt, first, second, probability)


def _prompt(row: Row, columns: Columns, beginning: list[Any]) -> Conversation:
    """The prompt: the common beginning of the responses, and the prompt's column."""
    column = repr(columns.prompt)
    begun = as_conversation(checked_prompt(row, beginning, column)) if beginning else None
    if columns.prompt not in row.values:
        if begun is None:
            raise _no_column(columns.prompt, row)
        return begun
    prompt = checked_prompt(row, row.values[columns.prompt], column)
    messages = as_conversation(prompt)
    if begun is None:
        return messages
    # Beside a conversation, a text is its last message.
    if messages != (begun[-1:] if isinstance(prompt, str) else begun):
        raise row.unusable(
            "a prompt that is not what its responses answer",
            f"has a {column} that is not what its responses answer: leave it out, or name another "
            "column in data.columns.prompt",
        )
    return begun


def _probability(row: Row, column: str) -> float:
    cell = row.values[column]
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        raise row.error(f"has {row.kind(cell)} as {column!r}, not a number in [0, 1]")
    if math.isnan(cell) or not 0 <= cell <= 1:
        raise row.error(f"has {cell} as {column!r}, which is no probability in [0, 1]")
    return float(cell)


def _refuse_unusable(row: Row, pair: PairRow, names: tuple[str, str]) -> None:
    """Refuse a pair from which nothing can be learnt."""
    for name, text in zip(names, (pair.first, pair.second), strict=True):
        if not text.strip():
            raise row.unusable("an empty response", f"has an empty {name!r}")
    if pair.first == pair.second:
        raise row.unusable("equal responses", f"has the same text as {names[0]!r} and {names[1]!r}")


def _no_column(name: str, row: Row) -> UserError:
    return row.error(
        f"has no column {name!r}: name the columns in data.columns; it has "
        f"{', '.join(row.values) or 'none'}{hint(row, _SHAPES)}"
    )
