"""Pairs that a network cannot read, found before the training begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from tqdm import tqdm

from nlhf_zoo.data.pairs import PreferencePairs
from nlhf_zoo.data.texts.pair_rows import PairRow
from nlhf_zoo.data.texts.row_source import RowSource
from nlhf_zoo.errors import UserError
from nlhf_zoo.preference_models.reader import Reader

Unreadable = Literal["refuse", "drop"]
_CHUNK = 1024  # pairs that are encoded at once


def look_through(
    data: PreferencePairs, reader: Reader, unreadable: Unreadable, shown: bool
) -> None:
    """Encode all pairs once, those held out too, and refuse or count those that cannot be read.

    Args:
        data: the pairs.
        reader: who reads them.
        unreadable: refuse them, or say how many will be left out.
        shown: show a progress bar where it takes long, and say the numbers.

    Raises:
        UserError: one cannot be read and is not to be dropped, or none can be read.
    """
    sources = [(data.source, data.training_pairs)]
    if data.validation_pairs:
        sources.append((data.validation_source or data.source, data.validation_pairs))
    for source, rows in sources:
        left_out = _count(source, rows, reader, unreadable, shown)
        if left_out == len(rows):
            raise UserError(f"{source.path}: {reader.where} can read none of the {left_out} pairs")
        if left_out and shown:
            print(
                f"{source.path}: {left_out} of {len(rows)} pairs cannot be read, and are left out",
                file=sys.stderr,
            )


def _count(
    source: RowSource, rows: Sequence[PairRow], reader: Reader, unreadable: Unreadable, shown: bool
) -> int:
    """How many rows cannot be read."""
    found = 0
    bar = tqdm(
        range(0, len(rows), _CHUNK),
        "Encoding",
        unit_scale=_CHUNK,
        unit=" pairs",
        delay=1,
        leave=False,
        disable=not shown,
    )
    for start in bar:
        some = rows[start : start + _CHUNK]
        texts = reader.encode([(row.conversation, row.first, row.second) for row in some])
        for row, text in zip(some, texts, strict=True):
            if problem := reader.problem(text):
                if unreadable == "refuse":
                    raise UserError(
                        f"{source.where(row.row)} {problem}: shorten it, or set model.unreadable "
                        "to drop to leave such pairs out"
                    )
                found += 1
    return found
