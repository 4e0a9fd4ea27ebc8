"""Prompts with responses to each, listed in a file of lines of JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nlhf_zoo.data.texts.conversations import (
    as_conversation,
    as_conversations,
    checked_prompt,
    checked_text,
    conversation_key,
    last_messages,
)
from nlhf_zoo.data.texts.row_source import Row, kind, read_lines
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

    Raises:
        UserError: the file cannot be read, or a line cannot be used.
    """
    prompts: list[str | Conversation] = []
    lines: dict[str, int] = {}
    responses: list[list[str]] = []
    names: list[list[str]] = []
    for row in read_lines(path, _EXAMPLE):
        for key in ("prompt", "responses"):
            if key not in row.values:
                raise row.error(f"has no {key}: write objects such as {_EXAMPLE}")
        prompts.append(checked_prompt(row, row.values["prompt"], "prompt"))
        key = conversation_key(as_conversation(prompts[-1]))
        if (before := lines.setdefault(key, row.number)) != row.number:
            raise row.error(
                f"has the prompt of line {before + 1} again: list all responses to a prompt in "
                "one line"
            )
        responses.append(_texts(row, "response"))
        if len(responses[-1]) < 2:
            raise row.error("has fewer than two responses: there is nothing to compare")
        names.append(_texts(row, "name") if "names" in row.values else responses[-1])
        if len(names[-1]) != len(responses[-1]):
            raise row.error(f"has {len(names[-1])} names for {len(responses[-1])} responses")
    if not prompts:
        raise UserError(f"{path} has no lines: there is no prompt to play")
    return ListedRows(last_messages(prompts), as_conversations(prompts), responses, names)


def _texts(row: Row, what: str) -> list[str]:
    """Different texts, none of them empty."""
    cell = row.values[f"{what}s"]
    if not isinstance(cell, list):
        raise row.error(f"has {kind(cell)} as {what}s: write a list of texts")
    texts: list[str] = []
    for text in cell:
        if not isinstance(text, str):
            raise row.error(f"has {kind(text)} among its {what}s: write a list of texts")
        if checked_text(row, text, what) in texts:
            raise row.error(f"has the {what} {text[:60]!r} twice")
        texts.append(text)
    return texts
