"""Responses that were drawn to prompts: those of a policy, as files keep them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nlhf_zoo.data.texts.conversations import (
    as_conversation,
    checked_prompt,
    checked_response,
    conversation_key,
)
from nlhf_zoo.data.texts.row_source import Row, kind, read_lines
from nlhf_zoo.errors import UserError

if TYPE_CHECKING:  # it takes torch
    from nlhf_zoo.records import Conversation

_EXAMPLE = '{"prompt": "...", "response": "..."} or {"prompt": "...", "responses": ["...", "..."]}'


@dataclass(frozen=True, slots=True)
class DrawnResponses:
    """Responses to one prompt, in the order of the file; equal ones stand as often as drawn.

    Args:
        prompt: text or messages.
        texts: N.
        truncated: whether each was cut at the limit of tokens, N.
        names: of each for reports, N; "" where the file gives none.
    """

    prompt: str | Conversation
    texts: list[str] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def read_drawn(path: str | Path) -> list[DrawnResponses]:
    """The responses to each prompt of a file, prompts in the order in which they first appear.

    Each line has a ``prompt``, and one ``response`` or a list of ``responses``: what `nlhf sample`
    writes, `ResponseTable`'s file (whose opponents' responses are left out), or a file as
    `ListedResponses` reads it. Other columns than ``truncated`` and ``names`` are left out.

    Raises:
        UserError: the file cannot be read, is empty, or a line cannot be used.
    """
    found: dict[str, DrawnResponses] = {}
    for row in read_lines(path, _EXAMPLE):
        if "prompt" not in row.values:
            raise row.error(f"has no prompt: write objects such as {_EXAMPLE}")
        prompt = checked_prompt(row, row.values["prompt"], "prompt")
        own = found.setdefault(conversation_key(as_conversation(prompt)), DrawnResponses(prompt))
        for text, cut, name in _responses(row):
            own.texts.append(text)
            own.truncated.append(cut)
            own.names.append(name)
    if not found:
        raise UserError(f"{path} has no lines: write objects such as {_EXAMPLE}")
    return [*found.values()]


def _responses(row: Row) -> Iterator[tuple[str, bool, str]]:
    """The responses of a line: text, whether it was cut, and name."""
    single, several = "response" in row.values, "responses" in row.values
    if single == several:
        raise row.error(f"must have either response or responses: write {_EXAMPLE}")
    if single:
        cut = row.values.get("truncated")
        if not (cut is None or isinstance(cut, bool)):
            raise row.error("has 'truncated' that is neither true nor false: write one of them")
        yield _text(row, row.values["response"], "response"), bool(cut), ""
        return
    cells = _list(row, "responses")
    names = _list(row, "names") if "names" in row.values else [""] * len(cells)
    if len(names) != len(cells):
        raise row.error(f"has {len(names)} names for {len(cells)} responses")
    for cell, name in zip(cells, names, strict=True):
        yield _text(row, cell, "responses"), False, _text(row, name, "names")


def _text(row: Row, cell: object, column: str) -> str:
    before, text = checked_response(row, cell, column)
    if before is not None:
        raise row.error(f"has a list of messages as {column!r}: write the text of the answer")
    return text


def _list(row: Row, column: str) -> list[object]:
    cell = row.values[column]
    if not isinstance(cell, list):
        raise row.error(f"has {kind(cell)} as {column}: write a list of texts")
    return cell
