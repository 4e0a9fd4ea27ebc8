"""Texts and conversations as their owners write them down, checked."""

from __future__ import annotations

from typing import Any

from nlhf_zoo.data.texts.json_lines import kind
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Conversation

ROLES = ("system", "user", "assistant")


def conversation(
    messages: list[Any],
    where: str,
    drop_last_assistant: bool = False,
    remedy: str = "leave it out",
) -> Conversation:
    """A prompt: a list of messages, of which the last is the user's.

    Args:
        messages: objects with ``role`` and ``content``; other keys are not part of the prompt.
        where: where it stands, for errors.
        drop_last_assistant: leave out a last message of the assistant's, which is an answer.
        remedy: what to do about such a message where it is not dropped.

    Raises:
        UserError: this is no prompt.
    """
    checked = [_checked_message(one, where) for one in messages]
    roles = [one["role"] for one in checked]
    if roles[-1:] == ["assistant"]:
        if not drop_last_assistant:
            raise UserError(
                f"{where} ends with a message of the assistant's, which would be the answer: "
                + remedy
            )
        checked, roles = checked[:-1], roles[:-1]
    if roles[-1:] != ["user"]:
        raise UserError(f"{where} does not end with a message of the user's: nothing to answer")
    if "system" in roles[1:]:
        raise UserError(f"{where} has a system message that is not the first")
    return checked


def message(role: str, content: str) -> dict[str, str]:
    """One message of a conversation."""
    return {"role": role, "content": content}


def checked_text(text: str, where: str, what: str) -> str:
    """A text that is not empty, and is Unicode.

    Args:
        text: the text.
        where: where it stands, for errors.
        what: what it is, likewise.

    Raises:
        UserError: it is empty, or cannot be written down.
    """
    if not text.strip():
        raise UserError(f"{where} has an empty {what}")
    return checked_unicode(text, where, what)


def checked_unicode(text: str, where: str, what: str) -> str:
    """A text that is Unicode; it may be empty, as a response may.

    Args:
        text: the text.
        where: where it stands, for errors.
        what: what it is, likewise.

    Raises:
        UserError: it cannot be written down.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may hold half of a surrogate pair
        raise UserError(
            f"{where} has a {what} that is not Unicode: {error.reason} at character {error.start}"
        ) from error
    return text


def _checked_message(written: object, where: str) -> dict[str, str]:
    """Role and content; other keys of a message are not part of the prompt."""
    if not isinstance(written, dict) or not {"role", "content"} <= written.keys():
        raise UserError(f"{where} has a message without role and content: {kind(written)}")
    role, content = written["role"], written["content"]
    if role not in ROLES:
        raise UserError(f"{where} has a message of role {role!r}: choose one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"{where} has a message whose content is {kind(content)}, not text")
    return message(role, checked_text(content, where, "message"))
