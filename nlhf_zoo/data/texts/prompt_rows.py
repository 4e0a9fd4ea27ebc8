"""Prompts as their owners keep them: all rows of a source hold texts, or all hold conversations."""

from __future__ import annotations

from dataclasses import replace

import torch

from nlhf_zoo.data.texts.conversations import (
    as_conversation,
    as_conversations,
    checked_prompt,
    last_messages,
    message,
)
from nlhf_zoo.data.texts.json_lines import kind
from nlhf_zoo.data.texts.row_source import RowSource
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Conversation, Prompts


def read_prompts(
    source: RowSource, column: str, drop_last_assistant: bool = False, offset: int = 0
) -> Prompts:
    """Read and check the rows of a source; ``offset`` is the number of the first row's prompt.

    A last message of the assistant's is an answer, which ``drop_last_assistant`` leaves out.

    Raises:
        UserError: a row cannot be a prompt, or there is none.
    """
    prompts: list[str | Conversation] = []
    remedy = "set data.drop_last_assistant to true to leave it out"
    for row in source.rows():
        if column not in row.values:
            raise row.error(
                f"has no column {column!r}: set data.column to one of "
                f"{', '.join(row.values) or 'its columns (it has none)'}"
            )
        cell = row.values[column]
        prompt = checked_prompt(cell, row.where, repr(column), drop_last_assistant, remedy)
        if prompts and isinstance(prompt, str) != isinstance(prompts[0], str):
            raise row.error(
                f"is {kind(cell)}, unlike the rows before it: let all rows be text, or all "
                "conversations"
            )
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{source.path} has no rows: there is no prompt to play")
    if drop_last_assistant and isinstance(prompts[0], str):
        raise UserError(
            f"data.drop_last_assistant is for conversations, but {source.path} holds text"
        )
    ids = torch.arange(offset, offset + len(prompts))
    return Prompts(ids, text=last_messages(prompts), conversations=as_conversations(prompts))


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
