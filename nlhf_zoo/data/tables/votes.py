"""Votes on pairs, from a CSV file or ballots of PrefLib to counts to preferences.

With w wins, l losses and t ties of y against y', and r pseudo-ties (the prior),

    P(y > y') = (w + t / 2 + r / 2) / (w + l + t + r).
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from nlhf_zoo.data.tables.files import read_rows, require_memory
from nlhf_zoo.data.tables.games import complete
from nlhf_zoo.data.tables.preflib import SUFFIXES, Unranked, read_ballots
from nlhf_zoo.errors import UserError

VoteFormat = Literal["votes", "arena"]
# What an arena calls the winner, and the share of the vote that model A then has.
WINNERS = {"model_a": 1.0, "model_b": 0.0}
WINNERS |= dict.fromkeys(("tie", "tie (bothbad)", "both_bad"), 0.5)
_ARENA = ("model_a", "model_b", "winner")
_REQUIRED = ("winner", "loser")
_OPTIONAL = ("prompt", "count", "tie")


@dataclass(frozen=True, slots=True)
class Votes:
    """What the votes say; C prompts, N the largest number of alternatives of a prompt.

    Args:
        preference: P(y > y'), float64 [C, N, N]; 1/2 where an alternative is absent.
        support: which alternatives each prompt has, bool [C, N].
        names: the alternatives of each prompt, C lists, ordered as they first appear.
        prompts: the prompts, ordered as they first appear; one empty text where the file has none.
    """

    preference: Tensor
    support: Tensor
    names: list[list[str]]
    prompts: list[str]


@dataclass(slots=True)
class _Counts:
    """Votes of one prompt: places of the alternatives, and counts by (place, place)."""

    place: dict[str, int] = field(default_factory=dict)
    wins: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))

    def add(self, winner: str, loser: str, count: float, tie: bool) -> None:
        one, other = (self.place.setdefault(name, len(self.place)) for name in (winner, loser))
        # A tie is half a win for each.
        self.wins[one, other] += count / 2 if tie else count
        if tie:
            self.wins[other, one] += count / 2

    def matrix(self, size: int) -> Tensor:
        """Wins and half the ties, [size, size]."""
        matrix = torch.zeros(size, size, dtype=torch.float64)
        if self.wins:
            rows, columns = torch.tensor(list(self.wins)).T
            matrix[rows, columns] = torch.tensor(list(self.wins.values()), dtype=torch.float64)
        return matrix


def read_votes(
    path: str | Path, prior: float = 1.0, shape: VoteFormat = "votes", unranked: Unranked = "refuse"
) -> Votes:
    """Read votes: a CSV file, or ballots of PrefLib (.soc, .soi, .toc, .toi).

    A row of a CSV with the columns winner, loser and, optionally, prompt, count and tie is
    ``count`` votes (default 1) for winner over loser, or as many ties where ``tie`` is 1: these are
    listed once a pair, in either order. Rows of the same pair add up. The shape "arena" has the
    columns model_a, model_b and winner, which is model_a, model_b or a tie; others are not read.

    Args:
        path: the file, in UTF-8.
        prior: pseudo-ties added to each pair, r. With 0, a pair that nobody compared is refused.
        shape: of a CSV file.
        unranked: what a ballot says of alternatives that it does not rank: refuse such a ballot;
            below (all that it ranks, and tied with each other); or uncompared.

    Raises:
        UserError: the file cannot be read, or a row or the lack of one makes no sense.
    """
    if not (math.isfinite(prior) and prior >= 0):
        raise UserError(
            f"the prior must be a finite number of pseudo-ties, at least 0, but it is {prior}"
        )
    if shape not in get_args(VoteFormat):
        raise UserError(f"the format of votes is one of {get_args(VoteFormat)}, not {shape!r}")
    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        if shape != "votes":
            raise UserError(f"votes {path} are ballots of PrefLib, and no CSV of format {shape}")
        counts = {"": _count_ballots(path, unranked)}
    else:
        if unranked != "refuse":
            raise UserError(
                f"unranked is for ballots of PrefLib ({', '.join(SUFFIXES)}), not {path}"
            )
        counts = _count_rows(path, shape)
    if not any(one.wins for one in counts.values()):
        raise UserError(f"votes {path} holds no votes: there is only a header")
    size = max(len(one.place) for one in counts.values())
    require_memory(
        48 * len(counts) * size**2, f"the preference of votes {path} {[len(counts), size, size]}"
    )

    names = [list(one.place) for one in counts.values()]
    support = torch.arange(size) < torch.tensor([[len(own)] for own in names])
    wins = torch.stack([one.matrix(size) for one in counts.values()])
    total = wins + wins.mT + prior
    unknown = (total == 0) & support[:, :, None] & support[:, None, :]
    unknown.diagonal(dim1=1, dim2=2).fill_(False)
    if unknown.any():
        prompt, one, other = unknown.nonzero()[0].tolist()
        text = list(counts)[prompt]
        raise UserError(
            f"nobody compared {names[prompt][one]!r} with {names[prompt][other]!r}"
            f"{f' for prompt {text!r}' if text else ''} in votes {path}: use a prior above 0"
        )
    share = torch.where(total > 0, (wins + prior / 2) / total, 0.5)
    return Votes(complete(share), support, names, list(counts))


def _count_ballots(path: Path, unranked: Unranked) -> _Counts:
    """Each ballot compares all pairs of alternatives that it ranks."""
    names, ballots = read_ballots(path, unranked)
    counts = _Counts({name: place for place, name in enumerate(names)})
    for count, ranks in ballots:
        for index, rank in enumerate(ranks):
            lower = [other for below in ranks[index + 1 :] for other in below]
            for place, one in enumerate(rank):
                for other in lower:
                    counts.wins[one, other] += count
                for other in rank[place + 1 :]:
                    counts.wins[one, other] += count / 2
                    counts.wins[other, one] += count / 2
    return counts


def _count_rows(path: Path, shape: VoteFormat) -> dict[str, _Counts]:
    columns: list[str] = []
    counts: dict[str, _Counts] = {}
    for row, at in read_rows(path, "votes"):
        if not columns:
            columns = _arena_columns(row, path) if shape == "arena" else _columns(row, path)
        else:
            _add_vote(counts, _votes_row(row, columns, at, shape), at)
    return counts


def _arena_columns(header: list[str], path: Path) -> list[str]:
    for column in _ARENA:
        if header.count(column) != 1:
            raise UserError(
                f"votes {path} must have the column {column!r} once in their first line, as those "
                "of an arena do"
            )
    return header


def _votes_row(row: list[str], columns: list[str], at: str, shape: VoteFormat) -> dict[str, str]:
    """The fields of a row, by the columns of votes."""
    if len(row) != len(columns):
        raise UserError(f"{at} has {len(row)} fields, but there are {len(columns)} columns")
    value = dict(zip(columns, row, strict=True))
    if shape == "votes":
        return value
    share = WINNERS.get(value["winner"])
    if share is None:
        raise UserError(
            f"{at} has the winner {value['winner']!r}: write one of {', '.join(WINNERS)}"
        )
    pair = (value["model_a"], value["model_b"])
    winner, loser = pair if share >= 0.5 else pair[::-1]
    return {"winner": winner, "loser": loser, "tie": str(int(share == 0.5))}


def _columns(header: list[str], path: Path) -> list[str]:
    known = _REQUIRED + _OPTIONAL
    for column in header:
        if column not in known:
            arena = "; set the format to arena" if {*_ARENA} <= {*header} else ""
            raise UserError(
                f"votes {path} has an unknown column {column!r}: use {', '.join(known)}{arena}"
            )
        if header.count(column) > 1:
            raise UserError(f"votes {path} has the column {column!r} twice")
    for column in _REQUIRED:
        if column not in header:
            raise UserError(f"votes {path} lacks the column {column!r} in their first line")
    return header


def _add_vote(counts: dict[str, _Counts], value: dict[str, str], at: str) -> None:
    for column in ("winner", "loser", "prompt"):
        # "A" and " A" would silently be two alternatives.
        if column in value and (not value[column] or value[column] != value[column].strip()):
            raise UserError(
                f"{at} has the {column} {value[column]!r}: give a name, without spaces around it"
            )
    if value["winner"] == value["loser"]:
        raise UserError(f"{at} compares {value['winner']!r} with itself")
    tie = value.get("tie", "0")
    if tie not in ("0", "1"):
        raise UserError(f"{at} has the tie {tie!r}: write 1 for a tie and 0 for a win")
    count = _count(value.get("count", "1"), at)
    of_prompt = counts.setdefault(value.get("prompt", ""), _Counts())
    of_prompt.add(value["winner"], value["loser"], count, tie == "1")


def _count(text: str, at: str) -> float:
    try:
        count = float(text)
    except ValueError:
        count = math.nan
    if not (math.isfinite(count) and count >= 0):
        raise UserError(f"{at} has the count {text!r}: give a finite number, at least 0")
    return count
