"""Prompts and responses as a row holds them, texts or lists of messages, checked; lists of them.

``column`` is what the column of a cell is called, for errors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlhf_zoo.data.texts.row_source import Row, kind, read_lines
from nlhf_zoo.errors import UserError

if TYPE_CHECKING:  # it takes torch
    from nlhf_zoo.records import Conversation

_ROLES = ("system", "user", "assistant")
_EXAMPLE = '{"prompt": "...", "responses": ["...", "..."]}'


def message(role: str, content: str) -> dict[str, str]:
    """One message of a conversation."""
    return {"role": role, "content": content}


def as_conversation(prompt: str | Conversation) -> Conversation:
    """A prompt as messages: a text is one message of the user's."""
    return [message("user", prompt)] if isinstance(prompt, str) else prompt


def conversation_key(conversation: Conversation) -> str:
    """A prompt as one text that no other prompt has."""
    return json.dumps([[one["role"], one["content"]] for one in conversation])


def last_messages(prompts: Sequence[str | Conversation]) -> list[str]:
    """The prompts as texts; of a conversation, its last message."""
    return [one if isinstance(one, str) else one[-1]["content"] for one in prompts]


def as_conversations(prompts: Sequence[str | Conversation]) -> list[Conversation] | None:
    """The prompts as messages, None where all are texts."""
    if all(isinstance(one, str) for one in prompts):
        return None
    return [*map(as_conversation, prompts)]


def checked_prompt(
    row: Row,
    cell: object,
    column: str,
    drop_last_assistant: bool = False,
    remedy: str = "leave it out",
) -> str | Conversation:
    """A prompt: a text, or a list of messages of which the last is the user's.

    Messages are objects with ``role`` and ``content``; other keys are not part of the prompt. An
    empty system message is none. A last message of the assistant's is an answer: it is left out
    with ``drop_last_assistant``, and refused without, for which the error has a ``remedy``.

    Raises:
        UserError: it is neither, a text is empty, or the messages leave nothing to answer.
    """
    if isinstance(cell, str):
        return checked_text(row, cell, "prompt")
    if cell is None:
        what = f"has neither text nor a list of messages as {column}, but null"
        raise row.unusable("no prompt", what)
    if not isinstance(cell, list):
        raise _neither(row, cell, column)
    checked = [_checked_message(row, one) for one in cell if not _is_empty_system(one)]
    roles = [one["role"] for one in checked]
    if roles[-1:] == ["assistant"]:
        if not drop_last_assistant:
            raise row.error(
                f"ends with a message of the assistant's, which would be the answer: {remedy}"
            )
        checked, roles = checked[:-1], roles[:-1]
    if roles[-1:] != ["user"]:
        raise row.unusable(
            "nothing to answer", "does not end with a message of the user's: nothing to answer"
        )
    if "system" in roles[1:]:
        raise row.unusable(
            "a system message that is not the first", "has a system message that is not the first"
        )
    return checked


def checked_response(row: Row, cell: object, column: str) -> tuple[list[Any] | None, str]:
    """The messages before a response, unchecked, None where it is text alone; and the response.

    Raises:
        UserError: it is neither a text nor the assistant's last message, or it is not Unicode.
    """
    if isinstance(cell, str):
        return None, _checked_unicode(row, cell, column)
    if cell is None:
        raise row.unusable(
            "no response", f"has neither text nor a list of messages as {column!r}, but null"
        )
    if not isinstance(cell, list):
        raise _neither(row, cell, repr(column))
    last = cell[-1] if cell else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise row.unusable(
            "no response",
            f"has messages as {column!r} that do not end with the assistant's, which would be the "
            "response",
        )
    content = last.get("content")
    if content is None:
        raise row.unusable(
            "no response", f"has as {column!r} a message whose content is null, not text"
        )
    if not isinstance(content, str):
        raise row.error(
            f"has as {column!r} a message whose content is {row.kind(content)}, not text"
        )
    return cell[:-1], _checked_unicode(row, content, column)


def checked_text(row: Row, text: str, what: str) -> str:
    """A text that is not empty, and is Unicode."""
    if not text.strip():
        raise row.unusable(f"an empty {what}", f"has an empty {what}")
    return _checked_unicode(row, text, what)


def _checked_unicode(row: Row, text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may hold half of a surrogate pair
        raise row.unusable(
            "text that is not Unicode",
            f"has a {what} that is not Unicode: {error.reason} at character {error.start}",
        ) from error
    return text


def _checked_message(row: Row, cell: object) -> dict[str, str]:
    if not isinstance(cell, dict) or not {"role", "content"} <= cell.keys():
        raise row.error(f"has a message without role and content: {row.kind(cell)}{_shape(cell)}")
    role, content = cell["role"], cell["content"]
    if role not in _ROLES:
        raise row.unusable(
            f"a message of role {role!r}",
            f"has a message of role {role!r}: choose one of {', '.join(_ROLES)}",
        )
    if content is None:
        raise row.unusable(
            "a message without content", "has a message whose content is null, not text"
        )
    if not isinstance(content, str):
        raise row.error(f"has a message whose content is {row.kind(content)}, not text")
    return message(role, checked_text(row, content, "message"))


def _is_empty_system(cell: object) -> bool:
    """Whether a message is one of the system's that says nothing, as some data sets have it."""
    if not isinstance(cell, dict) or cell.get("role") != "system" or "content" not in cell:
        return False
    content = cell["content"]
    return content is None or (isinstance(content, str) and not content.strip())


def _shape(cell: object) -> str:
    """What to do with a message of another shape."""
    is_sharegpt = isinstance(cell, dict) and {"from", "value"} <= cell.keys()
    return "; such rows are read with data.format: sharegpt" if is_sharegpt else ""


def _neither(row: Row, cell: object, column: str) -> UserError:
    return row.error(
        f"has neither text nor a list of messages as {column}, but {row.kind(cell)}{_shape(cell)}"
    )


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
