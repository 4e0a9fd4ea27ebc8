"""Votes on pairs, from files as they are kept to counts to preferences.

With w wins, l losses and t ties of y against y', and r pseudo-ties (the prior),

    P(y > y') = (w + t / 2 + r / 2) / (w + l + t + r).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from nlhf_zoo.data.tables.ballots import Ballot, Unranked, completed, names_by_rank, rank_columns
from nlhf_zoo.data.tables.files import require_memory
from nlhf_zoo.data.tables.games import complete
from nlhf_zoo.data.tables.preflib import SUFFIXES, read_ballots
from nlhf_zoo.data.tables.rows import JSON, TableRow, read_table
from nlhf_zoo.data.tables.voters import PairVoters, RankingVoters, Voters
from nlhf_zoo.data.winners import WINNERS
from nlhf_zoo.errors import UserError

VoteFormat = Literal["auto", "votes", "arena", "rankings", "people"]
Unit = Literal["votes", "voters", "ballots"]  # that are taken for independent of each other
_ARENA = ("model_a", "model_b", "winner")
_REQUIRED = ("winner", "loser")
_OPTIONAL = ("prompt", "count", "tie", "voter")
_OF_RANKINGS = ("prompt", "count", "voter")
_PEOPLE = ("prompt", "first", "second", "choice", "person")  # of what `nlhf ask --export` writes


@dataclass(frozen=True, slots=True)
class Votes:
    """What the votes say; C prompts, N the largest number of alternatives of a prompt.

    Args:
        preference: P(y > y'), float64 [C, N, N]; 1/2 where an alternative is absent.
        support: which alternatives each prompt has, bool [C, N].
        names: the alternatives of each prompt, C lists, ordered as they first appear.
        prompts: the prompts, ordered as they first appear; one empty text where the file has none.
        voters: those of each prompt, C of them.
        unit: what is independent of each other: voters who are named, ballots, or single votes.
        prior: pseudo-ties of each pair, r.
    """

    preference: Tensor
    support: Tensor
    names: list[list[str]]
    prompts: list[str]
    voters: list[Voters]
    unit: Unit
    prior: float

    def resampled(self, prompt: int, times: Tensor) -> Tensor:
        """The preferences of resamples of a prompt's voters, float64 [R, N, N] of its own N.

        Args:
            prompt: its number.
            times: how often each kind of voter counts [R, T].

        Raises:
            UserError: the prior is 0, and a resample has no vote on some pair.
        """
        wins = self.voters[prompt].wins(times)
        total = wins + wins.mT + self.prior
        missing = (total == 0).flatten(1).sum(1) > len(self.names[prompt])  # the diagonal is 0
        if missing.any():
            raise UserError(
                f"{int(missing.sum())} of {len(times)} resamples of the {self.unit} have a pair "
                "that nobody compared: use a prior above 0"
            )
        return _preference(wins, total, self.prior)


@dataclass(slots=True)
class _Pairs:
    """Votes on pairs of one prompt."""

    place: dict[str, int] = field(default_factory=dict)  # of each alternative
    votes: dict[tuple[str | None, int, int, bool], float] = field(
        default_factory=lambda: defaultdict(float)
    )

    def add(self, voter: str | None, winner: str, loser: str, count: float, tie: bool) -> None:
        one, other = (self.place.setdefault(name, len(self.place)) for name in (winner, loser))
        self.votes[voter, one, other, tie] += count

    def voters(self, unranked: Unranked) -> Voters:
        """All of them; votes on pairs rank nothing."""
        return PairVoters(self.votes, len(self.place))


@dataclass(slots=True)
class _Rankings:
    """Ballots of one prompt."""

    place: dict[str, int] = field(default_factory=dict)
    count: dict[tuple[tuple[int, ...], ...], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    at: dict[tuple[tuple[int, ...], ...], str] = field(default_factory=dict)  # its first row
    named: set[str] = field(default_factory=set)  # voters

    def add(self, names: Iterable[Iterable[str]], count: float, at: str) -> None:
        ballot = tuple(
            tuple(self.place.setdefault(name, len(self.place)) for name in rank) for rank in names
        )
        self.count[ballot] += count
        self.at.setdefault(ballot, at)

    def voters(self, unranked: Unranked) -> Voters:
        """All of them, of whom each ranks what is ranked by any."""
        num = len(self.place)
        ballots: list[Ballot] = [
            completed([[*rank] for rank in ballot], num, unranked, self.at[ballot])
            for ballot in self.count
        ]
        return RankingVoters(ballots, [*self.count.values()], num)


_Read = dict[str, _Pairs] | dict[str, _Rankings]


def read_votes(
    path: str | Path, prior: float = 1.0, shape: VoteFormat = "auto", unranked: Unranked = "refuse"
) -> Votes:
    """Read votes: tables in CSV or JSON, or ballots of PrefLib (.soc, .soi, .toc, .toi).

    A table is told by its columns, and docs/votes.md says what each may hold: votes have winner and
    loser; an arena model_a, model_b and winner; rankings have ranking, or rank1, rank2 and so on;
    and what `nlhf ask --export` writes has prompt, first, second, choice and person. Rows of the
    same pair add up.

    Args:
        path: the file, in UTF-8.
        prior: pseudo-ties added to each pair, r. With 0, a pair that nobody compared is refused.
        shape: of a table; "auto" goes by its columns.
        unranked: what a ballot says of alternatives that it does not rank: refuse such a ballot;
            below (all that it ranks, and tied with each other); or uncompared.

    Raises:
        UserError: the file cannot be read, or a row or the lack of one makes no sense.
    """
    if not (math.isfinite(prior) and prior >= 0):
        raise UserError(
            f"the prior must be a finite number of pseudo-ties, at least 0, but it is {prior}"
        )
    for given, allowed, what in (
        (shape, VoteFormat, "the format of votes"),
        (unranked, Unranked, "unranked"),
    ):
        if given not in get_args(allowed):
            raise UserError(f"{what} is one of {get_args(allowed)}, not {given!r}")
    path = Path(path)
    unit, read = _read(path, shape, unranked)
    if not any(one.place for one in read.values()):
        raise UserError(f"votes {path} holds no votes: there is only a header")
    size = max(len(one.place) for one in read.values())
    require_memory(
        48 * len(read) * size**2, f"the preference of votes {path} {[len(read), size, size]}"
    )

    names, prompts = [list(one.place) for one in read.values()], list(read)
    support = torch.arange(size) < torch.tensor([[len(own)] for own in names])
    voters = [one.voters(unranked) for one in read.values()]
    wins = torch.zeros(len(read), size, size, dtype=torch.float64)
    for own, of_prompt in zip(wins, voters, strict=True):
        own[: of_prompt.num, : of_prompt.num] = of_prompt.wins(of_prompt.count[None])[0]
    total = wins + wins.mT + prior
    unknown = (total == 0) & support[:, :, None] & support[:, None, :]
    unknown.diagonal(dim1=1, dim2=2).fill_(False)
    if unknown.any():
        prompt, one, other = unknown.nonzero()[0].tolist()
        text = prompts[prompt]
        raise UserError(
            f"nobody compared {names[prompt][one]!r} with {names[prompt][other]!r}"
            f"{f' for prompt {text!r}' if text else ''} in votes {path}: use a prior above 0"
        )
    preference = _preference(wins, total, prior)
    return Votes(preference, support, names, prompts, voters, unit, prior)


def _preference(wins: Tensor, total: Tensor, prior: float) -> Tensor:
    """P(y > y') [..., N, N]; 1/2 where there is nothing."""
    return complete(torch.where(total > 0, (wins + prior / 2) / total, 0.5))


def _read(path: Path, shape: VoteFormat, unranked: Unranked) -> tuple[Unit, _Read]:
    """What the file holds by prompt, and what is independent of each other."""
    if path.suffix.lower() in SUFFIXES:
        if shape not in ("auto", "votes"):
            raise UserError(f"votes {path} are ballots of PrefLib, and no table of format {shape}")
        return "ballots", {"": _of_preflib(path)}
    columns, rows = read_table(path, "votes")
    if shape == "auto":
        shape = _shape_of(columns)
    if shape != "rankings" and unranked != "refuse":
        raise UserError(
            f"unranked is for rankings and ballots of PrefLib ({', '.join(SUFFIXES)}), not {path}"
        )
    check = {
        "votes": _check_votes,
        "arena": _check_arena,
        "rankings": _check_rankings,
        "people": _check_people,
    }[shape]
    if path.suffix.lower() in JSON:  # each row has its own
        rows = _checked(rows, check)
    elif columns:
        check(columns, f"votes {path}")
    named = shape == "people" or "voter" in columns or (shape == "arena" and "judge" in columns)
    if shape == "rankings":
        return "ballots", _rankings(rows)
    return "voters" if named else "votes", _pairs(rows, shape, named)


def _shape_of(columns: Sequence[str]) -> VoteFormat:
    """The format of a table by its columns; votes where they are none of others."""
    if {*_ARENA} <= {*columns}:
        return "arena"
    if {*_PEOPLE} <= {*columns}:
        return "people"
    return "rankings" if "ranking" in columns or rank_columns(columns) else "votes"


def _checked(
    rows: Iterable[TableRow], check: Callable[[Sequence[str], str], None]
) -> Iterator[TableRow]:
    for value, at in rows:
        check([*value], at)
        yield value, at


def _check_votes(columns: Sequence[str], where: str) -> None:
    arena = "; set the format to arena" if {*_ARENA} <= {*columns} else ""
    _refuse_unknown(columns, _REQUIRED + _OPTIONAL, where, arena)
    _require(columns, _REQUIRED, where)


def _check_arena(columns: Sequence[str], where: str) -> None:
    _require(columns, _ARENA, where, ", as those of an arena do")


def _check_people(columns: Sequence[str], where: str) -> None:
    _require(columns, _PEOPLE, where, ", as of `nlhf ask --export`")


def _check_rankings(columns: Sequence[str], where: str) -> None:
    ranks = rank_columns(columns)
    if ("ranking" in columns) == bool(ranks):
        raise UserError(f"{where} must have either the column 'ranking', or rank1, rank2, ...")
    _refuse_unknown(columns, ("ranking", *ranks, *_OF_RANKINGS), where)
    _require(columns, [f"rank{place + 1}" for place in range(len(ranks))], where)
    if {"voter", "count"} <= {*columns}:
        raise UserError(
            f"{where} has the columns 'voter' and 'count': a ballot with a voter counts once, so "
            "leave one of them out"
        )


def _refuse_unknown(
    columns: Sequence[str], known: Sequence[str], where: str, hint: str = ""
) -> None:
    for column in columns:
        if column not in known:
            raise UserError(
                f"{where} has an unknown column {column!r}: use {', '.join(known)}{hint}"
            )


def _require(columns: Sequence[str], required: Sequence[str], where: str, why: str = "") -> None:
    for column in required:
        if column not in columns:
            raise UserError(f"{where} lacks the column {column!r}{why}")


def _of_preflib(path: Path) -> _Rankings:
    names, ballots = read_ballots(path)
    read = _Rankings({name: place for place, name in enumerate(names)})
    empty = True
    for count, ranks, at in ballots:
        read.add([[names[place] for place in rank] for rank in ranks], count, at)
        empty = False
    return _Rankings() if empty else read


def _rankings(rows: Iterable[TableRow]) -> dict[str, _Rankings]:
    read: dict[str, _Rankings] = {}
    for value, at in rows:
        of_prompt = read.setdefault(_prompt(value, at), _Rankings())
        if (voter := _voter(value, at)) is not None:
            if voter in of_prompt.named:
                raise UserError(f"{at} is a second ballot of the voter {voter!r}")
            of_prompt.named.add(voter)
        of_prompt.add(names_by_rank(value, at), _count(value.get("count", "1"), at), at)
    return read


def _pairs(rows: Iterable[TableRow], shape: VoteFormat, named: bool) -> dict[str, _Pairs]:
    read: dict[str, _Pairs] = {}
    form = {"arena": _of_arena, "people": _of_people}.get(shape)
    for value, at in rows:
        own = value if form is None else form(value, at)
        if own is None:
            continue
        winner, loser = _name(own, "winner", at), _name(own, "loser", at)
        if winner == loser:
            raise UserError(f"{at} compares {winner!r} with itself")
        if (tie := own.get("tie", "0")) not in ("0", "1"):
            raise UserError(f"{at} has the tie {tie!r}: write 1 for a tie and 0 for a win")
        count = _count(own.get("count", "1"), at)
        if ((voter := _voter(own, at)) is not None) != named:
            raise UserError(f"{at} has {'no' if named else 'a'} voter, unlike the first row")
        of_prompt = read.setdefault(_prompt(own, at), _Pairs())
        of_prompt.add(voter, winner, loser, count, tie == "1")
    return read


def _of_arena(value: dict[str, object], at: str) -> dict[str, object]:
    """A row of an arena by the columns of votes."""
    winner = value["winner"]
    share = WINNERS.get(winner) if isinstance(winner, str) else None
    if share is None:
        raise UserError(f"{at} has the winner {winner!r}: write one of {', '.join(WINNERS)}")
    pair = (value["model_a"], value["model_b"])
    one, other = pair if share >= 0.5 else pair[::-1]
    row: dict[str, object] = {"winner": one, "loser": other, "tie": str(int(share == 0.5))}
    for column in ("judge", "voter"):  # who is named as a voter counts before a judge
        if (who := value.get(column)) is not None:
            row["voter"] = who if isinstance(who, str) else json.dumps(who)
    return row


def _of_people(value: dict[str, object], at: str) -> dict[str, object] | None:
    """A vote that people gave by the columns of votes; None where it was undone or skipped."""
    choice = value["choice"]
    if choice not in ("first", "second", "neither", "skip"):
        raise UserError(f"{at} has the choice {choice!r}: it is first, second, neither or skip")
    if "undone" in value or choice == "skip":
        return None
    pair = (_Text(value["first"]), _Text(value["second"]))
    one, other = pair[::-1] if choice == "second" else pair
    prompt = value["prompt"]
    if not isinstance(prompt, str):
        prompt = json.dumps(prompt, ensure_ascii=False)
    row: dict[str, object] = {"winner": one, "loser": other, "prompt": _Text(prompt)}
    return row | {"tie": str(int(choice == "neither")), "voter": value["person"]}


class _Text(str):
    """What a model wrote, or was asked: it may have spaces around it, or be empty."""


def _name(value: dict[str, object], column: str, at: str) -> str:
    name = value[column]
    if isinstance(name, _Text):
        return str(name)
    # "A" and " A" would silently be two alternatives.
    if not isinstance(name, str) or not name or name != name.strip():
        raise UserError(f"{at} has the {column} {name!r}: give a name, without spaces around it")
    return name


def _prompt(value: dict[str, object], at: str) -> str:
    return _name(value, "prompt", at) if "prompt" in value else ""


def _voter(value: dict[str, object], at: str) -> str | None:
    return _name(value, "voter", at) if "voter" in value else None


def _count(text: object, at: str) -> float:
    try:
        count = float(str(text))
    except ValueError:
        count = math.nan
    if not (math.isfinite(count) and count >= 0):
        raise UserError(f"{at} has the count {text!r}: give a finite number, at least 0")
    return count
