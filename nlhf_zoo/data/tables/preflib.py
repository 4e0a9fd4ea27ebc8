"""Ballots of PrefLib: `.soc`, `.soi`, `.toc` and `.toi`, the formats since 2022.

A line `3: 1,{2,4}` is three ballots that put alternative 1 first, and 2 and 4 level behind it. Each
compares all pairs of alternatives that it ranks: a win for the one that stands before the other, a
tie where they stand in braces together. What it says of alternatives that it does not rank is the
user's to decide (`ballots.completed`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from nlhf_zoo.data.tables.ballots import Ballot
from nlhf_zoo.data.tables.files import require_file
from nlhf_zoo.errors import UserError

SUFFIXES = (".soc", ".soi", ".toc", ".toi")

_NAME = re.compile(r"# ALTERNATIVE NAME (\d+): (.*)")
_BALLOT = re.compile(r"(\d+(?:\.\d+)?): *(.*)")
_GROUP = re.compile(r"\{([^{}]*)\}|([^{},]+)")


def read_ballots(path: Path) -> tuple[list[str], Iterator[tuple[float, Ballot, str]]]:
    """The names of the alternatives, and ballots: how many, the ballot, and its place for errors.

    Raises:
        UserError: the file cannot be read, or, as the ballots are read, one of them.
    """
    lines = _lines(path)
    found = [match for _, line in lines if (match := _NAME.fullmatch(line))]
    numbers = [match[1] for match in found]
    names = [match[2].strip() for match in found]
    if not names:
        raise UserError(
            f"votes {path} name no alternatives, as files of PrefLib do since 2022: lines such as "
            "'# ALTERNATIVE NAME 1: Ann' come before the ballots"
        )
    for kind, each in (("the number", numbers), ("the name", names)):
        if twice := next((one for one in each if each.count(one) > 1), None):
            raise UserError(f"votes {path} have {kind} {twice!r} for two alternatives")
    place = {number: index for index, number in enumerate(numbers)}
    ballots = ((at, line) for at, line in lines if line and not line.startswith("#"))
    return names, ((*_ballot(at, line, place), at) for at, line in ballots)


def _lines(path: Path) -> list[tuple[str, str]]:
    """The lines, each with its place for errors."""
    require_file(path, "votes")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"votes {path} is not text in UTF-8: save it as UTF-8") from error
    return [
        (f"line {number} of votes {path}", line.strip())
        for number, line in enumerate(text.splitlines(), 1)
    ]


def _ballot(at: str, line: str, place: dict[str, int]) -> tuple[float, Ballot]:
    ballot = _BALLOT.fullmatch(line)
    if ballot is None or _GROUP.sub("", ballot[2]).strip(", "):
        raise UserError(f"{at} is no ballot such as '3: 1,{{2,4}}': {line[:60]!r}")
    ranks: Ballot = []
    ranked: set[str] = set()
    for several, single in _GROUP.findall(ballot[2]):
        rank = [one.strip() for one in (several or single).split(",") if one.strip()]
        for one in rank:
            if one not in place:
                raise UserError(f"{at} ranks {one!r}, which is no alternative of the file")
            if one in ranked:
                raise UserError(f"{at} ranks alternative {one} twice")
            ranked.add(one)
        ranks.append([place[one] for one in rank])
    return float(ballot[1]), ranks
