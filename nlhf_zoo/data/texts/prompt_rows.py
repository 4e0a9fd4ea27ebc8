"""Prompts as their owners keep them: lines of JSON, or a data set of the `datasets` library.

A row holds text, or a conversation: a list of messages, each with ``role`` and ``content``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from nlhf_zoo.data.texts.conversations import checked_text, conversation, message
from nlhf_zoo.data.texts.json_lines import kind
from nlhf_zoo.data.texts.row_source import RowSource
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Conversation


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Prompts in the order of their rows.

    Args:
        text: N texts; of a conversation, its last message.
        conversations: N conversations, None for prompts that are plain text.
    """

    text: list[str]
    conversations: list[Conversation] | None = None

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.text)

    def take(self, places: Iterable[int]) -> PromptRows:
        """Some of them."""
        places = list(places)
        talk = self.conversations
        return PromptRows(
            [self.text[i] for i in places], None if talk is None else [talk[i] for i in places]
        )


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Where prompts are kept.

    Args:
        path: a .jsonl or .json file of one JSON object a line; or a folder or a name on the hub,
            for the `datasets` library.
        split: of a data set; a file has none but "train".
        name: configuration of a data set on the hub or in a folder.
        column: what the rows call the prompt.
        limit: read the first rows only.

    Raises:
        UserError: there can be nothing to read.
    """

    path: str
    split: str = "train"
    name: str | None = None
    column: str = "prompt"
    limit: int | None = None

    rows: RowSource = field(init=False)  # with all their columns

    def __post_init__(self) -> None:
        """Refuse what cannot be read, without reading it."""
        example = f'{{"{self.column}": "..."}}'
        rows = RowSource(self.path, self.split, self.name, self.limit, "prompts", example)
        object.__setattr__(self, "rows", rows)

    def where(self, row: int) -> str:
        """Where a row stands, for errors: lines count from 1, rows of a data set from 0."""
        return self.rows.where(row)

    def read(
        self,
        as_conversation: bool = False,
        system: str | None = None,
        drop_last_assistant: bool = False,
    ) -> PromptRows:
        """Read and check the rows.

        Args:
            as_conversation: make each text a conversation of one message of the user's.
            system: a first message to put before each conversation.
            drop_last_assistant: leave out a last message of the assistant's, which is an answer.

        Raises:
            UserError: a row cannot be a prompt, or there is none.
        """
        text: list[str] = []
        conversations: list[Conversation] = []
        for row, values in self.rows.rows():
            where = self.where(row)
            if self.column not in values:
                raise UserError(
                    f"{where} has no column {self.column!r}: set data.column to one of "
                    f"{', '.join(values) or 'its columns (it has none)'}"
                )
            cell = values[self.column]
            if isinstance(cell, str):
                text.append(checked_text(cell, where, "prompt"))
            elif isinstance(cell, list):
                conversations.append(
                    conversation(
                        cell,
                        where,
                        drop_last_assistant,
                        "set data.drop_last_assistant to true to leave it out",
                    )
                )
            else:
                raise UserError(
                    f"{where} has neither text nor a list of messages as {self.column!r}, but "
                    f"{kind(cell)}"
                )
            if text and conversations:
                raise UserError(
                    f"{where} is {kind(cell)}, unlike the rows before it: let all rows be text, "
                    "or all conversations"
                )
        if not text and not conversations:
            raise UserError(f"{self.path} has no rows: there is no prompt to play")
        rows = PromptRows([c[-1]["content"] for c in conversations], conversations)
        if text:
            if drop_last_assistant:
                raise UserError(
                    f"data.drop_last_assistant is for conversations, but {self.path} holds text"
                )
            rows = PromptRows(text)
        return _in_conversation(rows, self.path, as_conversation, system)


def _in_conversation(
    rows: PromptRows, path: str, as_conversation: bool, system: str | None
) -> PromptRows:
    """With the messages that the options add."""
    if as_conversation:
        if rows.conversations is not None:
            raise UserError(
                f"{path} holds conversations already: set data.as_conversation to false"
            )
        rows = replace(rows, conversations=[[message("user", text)] for text in rows.text])
    if system is None:
        return rows
    if rows.conversations is None:
        raise UserError(
            f"data.system begins conversations, but {path} holds text: "
            "set data.as_conversation to true"
        )
    if any(c[0]["role"] == "system" for c in rows.conversations):
        raise UserError(
            f"conversations of {path} begin with a system message of their own: leave out "
            "data.system"
        )
    return replace(
        rows, conversations=[[message("system", system), *c] for c in rows.conversations]
    )
