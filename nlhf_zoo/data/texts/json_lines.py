"""Files of lines of JSON, read with care: one object a line, in UTF-8."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nlhf_zoo.errors import UserError

_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read."""

    number: int  # in the source, from 0
    where: str  # for errors: lines count from 1, rows of a data set from 0
    values: Mapping[str, Any]  # by column

    def error(self, what: str) -> UserError:
        """The error that says what is wrong with this row."""
        return UserError(f"{self.where} {what}")


def read_lines(path: str | Path, example: str) -> Iterator[Row]:
    """The objects of a file, one a line; blank lines may stand at its end.

    An error shows ``example``, an object such as the file should hold.

    Raises:
        UserError: the file cannot be read, or a line holds no object.
    """
    for number, line in enumerate(_lines(path)):
        where = line_of(path, number)
        values = _parse(line, where)
        if not isinstance(values, dict):
            raise UserError(
                f"{where} holds {kind(values)}, not an object such as {example}: "
                "write one object a line"
            )
        yield Row(number, where, values)


def line_of(path: str | Path, row: int) -> str:
    """Where a row of a file stands, for errors: lines count from 1, rows from 0."""
    return f"line {row + 1} of {path}"


def kind(value: object) -> str:
    """What a value of JSON is, for errors."""
    names = {str: "text", dict: "an object", list: "a list of messages", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


def _lines(path: str | Path) -> Iterator[bytes]:
    """The lines of a file, apart from blank ones at its end."""
    blank: int | None = None
    try:
        # As bytes: text would also be split where a prompt has another kind of line's end.
        with open(path, "rb") as file:
            for row, line in enumerate(file):
                if row == 0 and line.startswith(_BYTE_ORDER_MARKS):
                    raise UserError(
                        f"{path} begins with a byte order mark: save it as UTF-8 without one"
                    )
                if not line.strip():
                    blank = row if blank is None else blank
                    continue
                if blank is not None:
                    raise UserError(
                        f"{line_of(path, blank)} is blank: blank lines may stand at the end only"
                    )
                yield line
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


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
