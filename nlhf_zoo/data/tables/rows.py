"""Rows of a table with named columns, from CSV or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from nlhf_zoo.data.tables.files import read_rows, require_file
from nlhf_zoo.errors import UserError

JSON = (".json", ".jsonl")
# A row by column. A cell is text; in JSON it may be a list or an object, too.
TableRow = tuple[dict[str, object], str]  # and its place for errors


def read_table(path: Path, what: str) -> tuple[list[str], Iterator[TableRow]]:
    """The columns of a file, of JSON those of its first row, and its rows.

    Of JSON a number becomes text, true and false "1" and "0", and null a cell that is not there.

    Args:
        path: a CSV file, whose first line names the columns; or, where it ends in .json or .jsonl,
            one object a line, or a list of objects.
        what: the file is called so in errors.

    Raises:
        UserError: the file cannot be read; or, as the rows are read, one has not as many cells as
            there are columns.
    """
    if path.suffix.lower() in JSON:
        return _of_json(path, what)
    rows = read_rows(path, what)
    header, _ = next(rows, ([], ""))
    for column in header:
        if header.count(column) > 1:
            raise UserError(f"{what} {path} has the column {column!r} twice")
    return header, (_of_csv(row, header, at) for row, at in rows)


def _of_csv(row: list[str], header: list[str], at: str) -> TableRow:
    if len(row) != len(header):
        raise UserError(f"{at} has {len(row)} fields, but there are {len(header)} columns")
    return dict(zip(header, row, strict=True)), at


def _of_json(path: Path, what: str) -> tuple[list[str], Iterator[TableRow]]:
    # Late: readers of texts know those of tables.
    from nlhf_zoo.data.texts.row_source import read_lines

    require_file(path, what)
    example = '{"winner": "A", "loser": "B"}'
    rows = (
        ({key: _cell(cell) for key, cell in row.values.items() if cell is not None}, row.where)
        for row in read_lines(path, example)
    )
    first = next(rows, None)
    if first is None:
        return [], iter(())
    return [*first[0]], chain([first], rows)


def _cell(cell: object) -> object:
    if isinstance(cell, bool):
        return str(int(cell))
    return str(cell) if isinstance(cell, int | float) else cell
