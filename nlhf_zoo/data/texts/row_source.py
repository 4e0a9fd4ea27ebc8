"""Rows as their owners keep them: in JSON, or in a data set of the `datasets` library."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from nlhf_zoo.errors import UserError, cause

_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # their byte order marks
_BEGINNING = 4096  # bytes of a file in which its first sign is looked for
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read."""

    number: int  # in the source, from 0
    where: str  # for errors: lines count from 1, rows of a data set from 0
    values: Mapping[str, Any]  # by column
    is_converted: bool = False  # by the datasets library, which makes numbers and dates of texts

    def error(self, what: str) -> UserError:
        """The error that says what is wrong with this row."""
        return UserError(f"{self.where} {what}")

    def unusable(self, reason: str, what: str) -> UnusableRowError:
        """The error of a row that is what it should be, but from which nothing can be had.

        ``reason`` is short, and the same for all rows of a kind, which are counted by it.
        """
        return UnusableRowError(reason, f"{self.where} {what}")

    def kind(self, value: object) -> str:
        """What a value of this row is, for errors."""
        if self.is_converted and not isinstance(value, str | dict | list | None):
            return (
                f"{kind(value)}, which the datasets library may have made of a text: "
                "give the rows as a .jsonl file"
            )
        return kind(value)


class UnusableRowError(UserError):
    """Nothing can be had from a row; ``reason`` is what such rows are counted by."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


Unusable = Literal["refuse", "drop"]


@dataclass(slots=True)
class Dropped:
    """What becomes of rows from which nothing can be had: refused, or counted and left out."""

    unusable: Unusable
    reasons: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.unusable not in get_args(Unusable):
            raise UserError(f"data.unusable is one of {get_args(Unusable)}, not {self.unusable!r}")

    @contextmanager
    def row(self) -> Iterator[None]:
        """Within it, an unusable row is counted and its block left, or refused with the remedy."""
        try:
            yield
        except UnusableRowError as error:
            if self.unusable == "refuse":
                raise UserError(
                    f"{error}: correct it, or set data.unusable to drop to leave such rows out"
                ) from error
            self.reasons[error.reason] += 1

    def note(self, path: str, total: int) -> list[str]:
        """What was left out of ``total`` rows, as a sentence; nothing where nothing was."""
        if not self.reasons:
            return []
        counts = ", ".join(f"{reason}: {count}" for reason, count in self.reasons.items())
        return [f"{path}: {self.reasons.total()} of {total} rows were left out ({counts})"]


@dataclass(frozen=True, slots=True)
class RowSource:
    """Where rows are kept.

    Args:
        path: a .jsonl or .json file of one JSON object a line, or a .json file of a list of them;
            or a folder or a name on the hub, for the `datasets` library.
        split: of a data set; a file has none but "train".
        name: configuration of a data set on the hub or in a folder.
        limit: read the first rows only.
        what: what the rows are, for errors.
        example: an object such as a file should hold, likewise.

    Raises:
        UserError: there is no such file or folder, or a file is asked for a split.
    """

    path: str
    split: str
    name: str | None
    limit: int | None
    what: str
    example: str

    def __post_init__(self) -> None:
        path = Path(self.path)
        if self.is_file:
            if not path.is_file():
                raise UserError(f"there is no file {self.path} of {self.what}")
            if self.name is not None or self.split != "train":
                raise UserError(
                    f"{self.path} is a file, with neither configurations nor splits, but "
                    f"configuration {self.name!r} and split {self.split!r} are asked for: "
                    "leave data.name and the split out"
                )
        elif path.is_file():
            raise UserError(
                f"{self.path} is not known to hold {self.what}: give a .jsonl file, of one JSON "
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
            return entry_of(self.path, row) if _is_list(self.path) else line_of(self.path, row)
        return f"row {row} of {self.path} ({self.split})"

    def rows(self) -> Iterator[Row]:
        """The rows, up to the limit."""
        if self.is_file:
            yield from islice(read_lines(self.path, self.example), self.limit)
        else:
            for number, values in islice(enumerate(self._load()), self.limit):
                yield Row(number, self.where(number), values, is_converted=True)

    def _load(self) -> Any:
        """The data set, of type `datasets.Dataset`."""
        try:
            from datasets import load_dataset, load_from_disk
        except ImportError as error:
            raise UserError(
                f"{self.what} from {self.path} need the datasets library: "
                "pip install 'nlhf_zoo[datasets]', or give a .jsonl file"
            ) from error
        folder = Path(self.path)
        saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
        if saved and self.name is not None:
            raise UserError(
                f"{self.path} is a saved data set without configurations: leave out data.name"
            )
        try:
            if not saved:
                return load_dataset(self.path, self.name, split=self.split)
            return self._split_of(load_from_disk(self.path))
        except UserError:
            raise
        except Exception as error:  # of files, the network, the hub: too many kinds to name
            raise UserError(
                f"the datasets library cannot load {self.path} ({self.split}): {cause(error)}"
            ) from error

    def _split_of(self, data: Any) -> Any:
        """The split asked for, of what was saved: a dictionary of splits, or one data set."""
        splits = data if isinstance(data, dict) else {str(data.split or "train"): data}
        if self.split not in splits:
            raise UserError(
                f"{self.path} has no split {self.split!r}: choose one of {', '.join(splits)}"
            )
        return splits[self.split]


def read_lines(path: str | Path, example: str) -> Iterator[Row]:
    """The objects of a file, one a line, or those of a list that is all of a .json file.

    Blank lines may stand at the end. An error shows ``example``, an object such as the file should
    hold.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    if Path(path).exists() and not Path(path).is_file():  # a device or a pipe may never end
        raise UserError(f"{path} is not a file: check the path")
    is_list = _is_list(path)
    for number, (where, values) in enumerate(_entries(path) if is_list else _objects(path)):
        if not isinstance(values, dict):
            way = "let the list hold objects" if is_list else "write one object a line"
            raise UserError(f"{where} holds {kind(values)}, not an object such as {example}: {way}")
        yield Row(number, where, values)


def _objects(path: str | Path) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(_lines(path)):
        where = line_of(path, number)
        yield where, _parse(line, where)


def _entries(path: str | Path) -> Iterator[tuple[str, object]]:
    """What a file that is one list holds."""
    values = _parse(Path(path).read_bytes().removeprefix(codecs.BOM_UTF8), str(path))
    assert isinstance(values, list)  # it begins as one
    return ((entry_of(path, number), value) for number, value in enumerate(values))


def _is_list(path: str | Path) -> bool:
    """Whether a .json file is one list, and not an object a line."""
    if Path(path).suffix.lower() != ".json":
        return False
    try:
        with open(path, "rb") as file:
            begin = file.read(_BEGINNING).removeprefix(codecs.BOM_UTF8).lstrip()
    except OSError:
        return False  # who reads it says so
    return begin.startswith(b"[")


def entry_of(path: str | Path, row: int) -> str:
    """Where an entry of a list in a file stands, for errors: entries count from 1, rows from 0."""
    return f"entry {row + 1} of {path}"


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
                if row == 0:
                    if line.startswith(_OTHER_ENCODINGS):
                        raise UserError(f"{path} is not text in UTF-8: save it as UTF-8")
                    line = line.removeprefix(codecs.BOM_UTF8)
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
            f"{where} is not JSON: {error.msg} at character {error.colno}"
            f"{_line(error)}; write one object a line"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers or nesting beyond all bounds
        raise UserError(f"{where} cannot be read as JSON: {error}") from error


def _line(error: json.JSONDecodeError) -> str:
    """The line within a list, which may have many."""
    return f" of its line {error.lineno}" if error.lineno > 1 else ""


def _object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{where} has the key {twice!r} twice")
    return values
