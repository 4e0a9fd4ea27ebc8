"""Prompts as their owners keep them: lines of JSON, or a data set of the `datasets` library.

A row holds text, or a conversation: a list of messages, each with ``role`` and ``content``.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Conversation

ROLES = ("system", "user", "assistant")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


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

    def __post_init__(self) -> None:
        """Refuse what cannot be read, without reading it."""
        path = Path(self.path)
        if self.is_file:
            if not path.is_file():
                raise UserError(f"there is no file {self.path} of prompts")
            if self.name is not None or self.split != "train":
                raise UserError(
                    f"{self.path} is a file, with neither configurations nor splits, but "
                    f"configuration {self.name!r} and split {self.split!r} are asked for: "
                    "leave data.name and the split out"
                )
        elif path.is_file():
            raise UserError(
                f"{self.path} is not known to hold prompts: give a .jsonl file, of one JSON "
                "object a line"
            )
        elif not self.path or (not path.is_dir() and not _HUB_NAME.fullmatch(self.path)):
            raise UserError(
                f"{self.path!r} is no file and no folder, and cannot be the name of a data set"
            )

    @property
    def is_file(self) -> bool:
        """Whether this is a file of lines of JSON."""
        path = Path(self.path)
        return path.suffix.lower() in (".jsonl", ".json") and not path.is_dir()

    def where(self, row: int) -> str:
        """Where a row stands, for errors: lines count from 1, rows of a data set from 0."""
        if self.is_file:
            return f"line {row + 1} of {self.path}"
        return f"row {row} of {self.path} ({self.split})"

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
        cells = _cells_of_file(self) if self.is_file else _cells_of_data_set(self)
        text: list[str] = []
        conversations: list[Conversation] = []
        for row, cell in enumerate(islice(cells, self.limit)):
            where = self.where(row)
            if isinstance(cell, str):
                text.append(_checked(cell, where, "prompt"))
            elif isinstance(cell, list):
                conversations.append(_conversation(cell, where, drop_last_assistant))
            else:
                raise UserError(
                    f"{where} has neither text nor a list of messages as {self.column!r}, but "
                    f"{_kind(cell)}"
                )
            if text and conversations:
                raise UserError(
                    f"{where} is {_kind(cell)}, unlike the rows before it: let all rows be text, "
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
        rows = replace(rows, conversations=[[_message("user", text)] for text in rows.text])
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
        rows, conversations=[[_message("system", system), *c] for c in rows.conversations]
    )


def _conversation(messages: list[Any], where: str, drop_last_assistant: bool) -> Conversation:
    checked = [_checked_message(message, where) for message in messages]
    roles = [message["role"] for message in checked]
    if roles[-1:] == ["assistant"]:
        if not drop_last_assistant:
            raise UserError(
                f"{where} ends with a message of the assistant's, which would be the answer: "
                "set data.drop_last_assistant to true to leave it out"
            )
        checked, roles = checked[:-1], roles[:-1]
    if roles[-1:] != ["user"]:
        raise UserError(f"{where} does not end with a message of the user's: nothing to answer")
    if "system" in roles[1:]:
        raise UserError(f"{where} has a system message that is not the first")
    return checked


def _checked_message(message: object, where: str) -> dict[str, str]:
    """Role and content; other keys of a message are not part of the prompt."""
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise UserError(f"{where} has a message without role and content: {_kind(message)}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise UserError(f"{where} has a message of role {role!r}: choose one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"{where} has a message whose content is {_kind(content)}, not text")
    return _message(role, _checked(content, where, "message"))


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _checked(text: str, where: str, what: str) -> str:
    if not text.strip():
        raise UserError(f"{where} has an empty {what}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may hold half of a surrogate pair
        raise UserError(
            f"{where} has a {what} that is not Unicode: {error.reason} at character {error.start}"
        ) from error
    return text


def _kind(value: object) -> str:
    names = {str: "text", dict: "an object", list: "a list of messages", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


# Lines of JSON -----------------------------------------------------------------------------------


def _cells_of_file(source: PromptSource) -> Iterator[object]:
    for row, line in enumerate(_lines(source)):
        where = source.where(row)
        values = _parse(line, where)
        if not isinstance(values, dict):
            raise UserError(
                f"{where} holds {_kind(values)}, not an object such as "
                f'{{"{source.column}": "..."}}: write one object a line'
            )
        if source.column not in values:
            raise _no_column(source, where, values)
        yield values[source.column]


def _lines(source: PromptSource) -> Iterator[bytes]:
    """The lines of a file, apart from blank ones at its end."""
    blank: int | None = None
    try:
        # As bytes: text would also be split where a prompt has another kind of line's end.
        with open(source.path, "rb") as file:
            for row, line in enumerate(file):
                if row == 0 and line.startswith(_BYTE_ORDER_MARKS):
                    raise UserError(
                        f"{source.path} begins with a byte order mark: save it as UTF-8 without one"
                    )
                if not line.strip():
                    blank = row if blank is None else blank
                    continue
                if blank is not None:
                    raise UserError(
                        f"{source.where(blank)} is blank: blank lines may stand at the end only"
                    )
                yield line
    except OSError as error:
        raise UserError(f"{source.path} cannot be read: {error.strerror}") from error


def _parse(line: bytes, where: str) -> object:
    try:
        return json.loads(line.decode(), object_pairs_hook=partial(_object, where))
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not text in UTF-8: save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is not JSON: {error.msg} at character {error.colno}; write one object a line"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers or nesting beyond all bounds
        raise UserError(f"{where} cannot be read as JSON: {error}") from error


def _object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{where} has the key {twice!r} twice")
    return values


def _no_column(source: PromptSource, where: str, columns: Iterable[str]) -> UserError:
    return UserError(
        f"{where} has no column {source.column!r}: set data.column to one of "
        f"{', '.join(columns) or 'its columns (it has none)'}"
    )


# The datasets library ----------------------------------------------------------------------------


def _cells_of_data_set(source: PromptSource) -> Iterator[object]:
    data = _load(source)
    if source.column not in data.column_names:
        raise _no_column(source, f"{source.path} ({source.split})", data.column_names)
    for row in data.select_columns([source.column]):
        yield row[source.column]


def _load(source: PromptSource) -> Any:
    """The data set, of type `datasets.Dataset`."""
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError as error:
        raise UserError(
            f"prompts from {source.path} need the datasets library: "
            "pip install 'nlhf_zoo[datasets]', or give a .jsonl file"
        ) from error
    folder = Path(source.path)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if saved and source.name is not None:
        raise UserError(
            f"{source.path} is a saved data set without configurations: leave out data.name"
        )
    try:
        if not saved:
            return load_dataset(source.path, source.name, split=source.split)
        return _split_of(load_from_disk(source.path), source)
    except UserError:
        raise
    except Exception as error:  # of files, the network, the hub: too many kinds to name
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the datasets library cannot load {source.path} ({source.split}): {cause}"
        ) from error


def _split_of(data: Any, source: PromptSource) -> Any:
    """The split asked for, of what was saved: a dictionary of splits, or one data set."""
    splits = data if isinstance(data, dict) else {str(data.split or "train"): data}
    if source.split not in splits:
        raise UserError(
            f"{source.path} has no split {source.split!r}: choose one of {', '.join(splits)}"
        )
    return splits[source.split]
