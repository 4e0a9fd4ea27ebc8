"""Rows as their owners keep them: lines of JSON, or a data set of the `datasets` library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nlhf_zoo.data.texts.json_lines import Row, line_of, read_lines
from nlhf_zoo.errors import UserError, cause

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class RowSource:
    """Where rows are kept.

    Args:
        path: a .jsonl or .json file of one JSON object a line; or a folder or a name on the hub,
            for the `datasets` library.
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
            return line_of(self.path, row)
        return f"row {row} of {self.path} ({self.split})"

    def rows(self) -> Iterator[Row]:
        """The rows, up to the limit."""
        if self.is_file:
            yield from islice(read_lines(self.path, self.example), self.limit)
        else:
            for number, values in islice(enumerate(self._load()), self.limit):
                yield Row(number, self.where(number), values)

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
