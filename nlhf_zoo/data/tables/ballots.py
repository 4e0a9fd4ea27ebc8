"""Ballots: alternatives in order, with ties, and what they say of those that they do not rank."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from nlhf_zoo.errors import UserError

Unranked = Literal["refuse", "below", "uncompared"]
Ballot = list[list[int]]  # places of alternatives by rank, the best first; of one rank are tied

_RANK = re.compile(r"rank([1-9]\d*)")


def completed(ballot: Ballot, num: int, unranked: Unranked, at: str) -> Ballot:
    """A ballot on ``num`` alternatives, with what it does not rank.

    Raises:
        UserError: it leaves out alternatives, and ``unranked`` is "refuse".
    """
    ranked = {place for rank in ballot for place in rank}
    rest = [place for place in range(num) if place not in ranked]
    if not rest or unranked == "uncompared":
        return ballot
    if unranked == "below":
        return [*ballot, rest]
    raise UserError(
        f"{at} ranks {len(ranked)} of {num} alternatives: set unranked to below, if the others "
        "stand below those and are tied, or to uncompared"
    )


def rank_columns(columns: Sequence[str]) -> list[str]:
    """Those of rank1, rank2, ... among the columns of a file, by rank."""
    return sorted(filter(_RANK.fullmatch, columns), key=lambda name: int(name[4:]))


def names_by_rank(value: dict[str, object], at: str) -> list[list[str]]:
    """The names of a row's ballot by rank, the best first.

    They stand in ``ranking``, as "A > B = C" or, in JSON, as a list whose entries are names or
    lists of names that are tied; or in ``rank1``, ``rank2``, ..., a name in each.

    Raises:
        UserError: the row is no ballot.
    """
    ranks = _listed(value["ranking"], at) if "ranking" in value else _in_columns(value, at)
    names = [name for rank in ranks for name in rank]
    if not names:
        raise UserError(f"{at} ranks no alternative")
    for name in names:
        if not name or name != name.strip():
            raise UserError(f"{at} ranks {name!r}: give a name, without spaces around it")
        if names.count(name) > 1:
            raise UserError(f"{at} ranks {name!r} twice")
    return ranks


def _listed(ranking: object, at: str) -> list[list[str]]:
    if isinstance(ranking, str):
        return [[n.strip() for n in rank.split("=")] for rank in ranking.split(">")]
    if isinstance(ranking, list):
        ranks: list[list[Any]] = [rank if isinstance(rank, list) else [rank] for rank in ranking]
        if all(isinstance(name, str) for rank in ranks for name in rank):
            return ranks
    raise UserError(f"{at} has no ranking such as 'A > B = C', or a list of names")


def _in_columns(value: dict[str, object], at: str) -> list[list[str]]:
    columns = rank_columns([*value])
    filled = [column for column in columns if value[column] != ""]
    if filled != columns[: len(filled)]:
        gap = next(column for column in columns if column not in filled)
        raise UserError(f"{at} has no {gap} before its {filled[-1]}: close the gap")
    return [[str(value[column])] for column in filled]
