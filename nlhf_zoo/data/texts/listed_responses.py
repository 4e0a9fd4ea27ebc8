"""Prompts with responses to each, listed in a file of lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlhf_zoo.data.texts.conversations import checked_text, conversation, message
from nlhf_zoo.data.texts.json_lines import kind, line_of, read_lines
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Conversation

_EXAMPLE = '{"prompt": "...", "responses": ["...", "..."]}'


@dataclass(frozen=True, slots=True)
class ListedRows:
    """C prompts, each with responses of its own number.

    Args:
        prompts: C texts; of a conversation, its last message.
        conversations: C conversations, None where all prompts are plain text; among conversations,
            a text is one message of the user's.
        responses: C lists of texts, two or more and all different.
        names: names of the responses, C lists; the responses themselves where a line has none.
    """

    prompts: list[str]
    conversations: list[Conversation] | None
    responses: list[list[str]]
    names: list[list[str]]


def read_listed(path: str | Path) -> ListedRows:
    """Read and check one object a line: prompt, responses and, optionally, names.

    Args:
        path: the file.

    Raises:
        UserError: the file cannot be read, or a line cannot be used.
    """
    cells: list[str | Conversation] = []
    lines: dict[str, int] = {}
    responses: list[list[str]] = []
    names: list[list[str]] = []
    for row, values in read_lines(path, example=_EXAMPLE):
        where = line_of(path, row)
        for key in ("prompt", "responses"):
            if key not in values:
                raise UserError(f"{where} has no {key}: write objects such as {_EXAMPLE}")
        cell = _prompt(values["prompt"], where)
        if (before := lines.setdefault(json.dumps(_talk(cell)), row)) != row:
            raise UserError(
                f"{where} has the prompt of line {before + 1} again: list all responses to a "
                "prompt in one line"
            )
        cells.append(cell)
        responses.append(_texts(values["responses"], where, "response"))
        if len(responses[-1]) < 2:
            raise UserError(f"{where} has fewer than two responses: there is nothing to compare")
        names.append(_names(values, responses[-1], where))
    if not cells:
        raise UserError(f"{path} has no lines: there is no prompt to play")
    prompts = [cell if isinstance(cell, str) else cell[-1]["content"] for cell in cells]
    plain = all(isinstance(cell, str) for cell in cells)
    return ListedRows(prompts, None if plain else [*map(_talk, cells)], responses, names)


def _prompt(cell: object, where: str) -> str | Conversation:
    if isinstance(cell, str):
        return checked_text(cell, where, "prompt")
    if isinstance(cell, list):
        return conversation(cell, where)
    raise UserError(f"{where} has neither text nor a list of messages as prompt, but {kind(cell)}")


def _talk(cell: str | Conversation) -> Conversation:
    return [message("user", cell)] if isinstance(cell, str) else cell


def _names(values: Mapping[str, Any], responses: list[str], where: str) -> list[str]:
    if "names" not in values:
        return responses
    names = _texts(values["names"], where, "name")
    if len(names) != len(responses):
        raise UserError(f"{where} has {len(names)} names for {len(responses)} responses")
    return names


def _texts(cell: object, where: str, what: str) -> list[str]:
    """Different texts, none of them empty."""
    if not isinstance(cell, list):
        raise UserError(f"{where} has {kind(cell)} as {what}s: write a list of texts")
    texts: list[str] = []
    for text in cell:
        if not isinstance(text, str):
            raise UserError(f"{where} has {kind(text)} among its {what}s: write a list of texts")
        if checked_text(text, where, what) in texts:
            raise UserError(f"{where} has the {what} {text[:60]!r} twice")
        texts.append(text)
    return texts
