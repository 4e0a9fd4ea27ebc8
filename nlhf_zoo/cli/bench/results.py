"""What was found: statistics over seeds, the table, and the file that others check."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nlhf_zoo import __version__
from nlhf_zoo.cli.bench.methods import Method
from nlhf_zoo.errors import UserError

FORMAT = "nlhf bench 2"
FLOOR = 1e-12  # exploitability below it is zero: other machines round otherwise there
SOLVED = 1e-6
LEVEL = 0.98  # of the intervals
# What is measured; a part may measure more.
EXPLOITABILITY, HELD_OUT = "exploitability", "held-out"
EFFECTIVE = "ESS"  # of an estimate; its spread says nothing


# By method and seed, the file that its figures were computed from, with its checksum and that of
# the weights; of parts that keep what they measured.
Evidence = dict[str, dict[str, str | None]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, of when the budget was spent.

    Args:
        method: whose.
        game: its name, with the part's own conditions, as beta.
        seed: of the game or the run.
        measure: `EXPLOITABILITY`, `HELD_OUT`, or what else a part measures.
        value: the figure.
    """

    method: str
    game: str
    seed: int
    measure: str
    value: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one measure of a method under one condition, such as a beta.

    Args:
        mean: over games and seeds; a geometric one where so asked, with figures below `FLOOR`
            counted as that.
        low: see ``high``.
        high: between them lies, in 98 of 100 cases, the mean of as many other seeds.
        worst: the largest of all.
        solved: share below `SOLVED`.
    """

    mean: float
    low: float
    high: float
    worst: float
    solved: float


def summary(figures: Sequence[Figure], geometric: bool = True) -> Summary:
    r"""Statistics of figures of several seeds, each on the same games.

    With m_i the mean over the games of seed i of the figure, of its logarithm if ``geometric``, of
    n seeds, and s their standard deviation, the interval is

    .. math:: \bar m \pm t_{n-1} \, s \sqrt{2 / n},

    that of the mean of n other seeds and not, which would be narrower, of the mean over all seeds;
    it is exact where the m_i are normal. One seed has no interval, nor has what left
    the numbers.
    """
    from scipy.stats import t as student  # late: it takes long

    values = np.array([figure.value for figure in figures])
    each = np.log(np.maximum(values, FLOOR)) if geometric else values
    seeds = sorted({figure.seed for figure in figures})
    of_seed = np.array([figure.seed for figure in figures])
    means = np.array([each[of_seed == seed].mean() for seed in seeds])
    number, half = len(seeds), math.nan
    if number > 1 and np.isfinite(means).all():
        half = float(
            student.ppf((1 + LEVEL) / 2, number - 1) * means.std(ddof=1) * math.sqrt(2 / number)
        )
    centre = float(means.mean())
    ends = np.array([centre - half, centre, centre + half])
    with np.errstate(over="ignore"):  # an end beyond the numbers is infinite
        low, mean, high = (np.exp(ends) if geometric else ends).tolist()
    solved = float((values < SOLVED).mean())
    return Summary(mean, low, high, float(values.max()), solved)


Summaries = dict[str, dict[str, dict[str, Summary]]]


def summaries(figures: Sequence[Figure], conditions: Sequence[str], geometric: bool) -> Summaries:
    """By method, condition, which is what the name of a game ends with, and measure."""
    found: Summaries = {}
    for method in dict.fromkeys(figure.method for figure in figures):
        own = [figure for figure in figures if figure.method == method]
        found[method] = {}
        for condition in conditions:
            here = [figure for figure in own if figure.game.endswith(condition)]
            found[method][condition] = {
                measure: summary([f for f in here if f.measure == measure], geometric)
                for measure in dict.fromkeys(figure.measure for figure in here)
            }
    return found


def order(found: Summaries, condition: str) -> list[str]:
    """The methods, the least exploitable first."""
    return sorted(found, key=lambda method: found[method][condition][EXPLOITABILITY].mean)


def table(found: Summaries, conditions: Sequence[str], tails: bool = True) -> str:
    """A table in Markdown, the best of the first condition first.

    Args:
        found: what is shown.
        conditions: beside each other.
        tails: whether the worst and the share below `SOLVED` are shown, too.
    """
    measures = [*next(iter(found.values()))[conditions[0]]]
    heads: list[str] = []
    for condition in conditions:
        heads += [condition, *(["worst", "solved"] if tails else []), *measures[1:]]
    lines = [f"| algorithm | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for method in order(found, conditions[0]):
        cells = []
        for condition in conditions:
            first, *others = (found[method][condition][measure] for measure in measures)
            cells.append(_with_interval(first))
            cells += [_number(first.worst), f"{first.solved:.0%}"] if tails else []
            cells += [
                _number(one.mean) if measure == EFFECTIVE else _with_interval(one)
                for measure, one in zip(measures[1:], others, strict=True)
            ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _with_interval(one: Summary) -> str:
    ends = "" if math.isnan(one.low) else f" ({_number(one.low)} to {_number(one.high)})"
    return f"{_number(one.mean)}{ends}"


def _number(value: float) -> str:
    if 0 <= value <= FLOOR * 1.001:
        return f"{FLOOR:.0e}"
    if value >= 10:
        return f"{value:.1f}" if value < 1e4 else f"{value:.0e}"
    return f"{value:.1e}" if 0 <= value < 1e-3 else f"{value:.4f}"


def content(
    part: str,
    small: bool,
    methods: Sequence[Method],
    figures: Sequence[Figure],
    seeds: list[int],
    queries: int,
    evidence: Evidence,
) -> dict[str, Any]:
    """A submission, as it is written to JSON."""
    return {
        "format": FORMAT,
        "part": part,
        "small": small,
        "nlhf_zoo": __version__,
        "seeds": seeds,
        "queries": queries,
        "methods": {
            m.name: {"algorithm": m.block, "rate": m.rate, "sources": m.sources} for m in methods
        },
        "results": [[f.method, f.game, f.seed, f.measure, f.value] for f in figures],
        "evidence": evidence,
    }


def read(path: Path) -> dict[str, Any]:
    """A submission of somebody's.

    Raises:
        UserError: it is none, or damaged.
    """
    rule = f"--check {path} is no file of results of nlhf bench"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{rule}: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{rule}: its format is not {FORMAT!r}")
    found.setdefault("evidence", {})
    kinds = {
        "part": str,
        "small": bool,
        "seeds": list,
        "queries": int,
        "methods": dict,
        "results": list,
        "evidence": dict,
    }
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind):
            raise UserError(f"{rule}: {key} is missing, or damaged")
    try:
        found["results"] = [
            Figure(str(m), str(g), int(s), str(k), float(v)) for m, g, s, k, v in found["results"]
        ]
        found["blocks"] = {name: dict(own["algorithm"]) for name, own in found["methods"].items()}
        found["rates"] = {
            name: None if (rate := own.get("rate")) is None else float(rate)
            for name, own in found["methods"].items()
        }
        found["sources"] = {name: dict(own["sources"]) for name, own in found["methods"].items()}
        found["seeds"] = [int(seed) for seed in found["seeds"]]
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{rule}: its methods or results are damaged") from error
    _refuse_unchecked(found["results"], found["methods"], rule)
    return found


def _refuse_unchecked(figures: Sequence[Figure], methods: Mapping[str, Any], rule: str) -> None:
    """Refuse figures that nothing would be compared with, for a reader takes them for checked."""
    if not methods:
        raise UserError(f"{rule}: it names no algorithm")
    if others := sorted({figure.method for figure in figures} - methods.keys()):
        raise UserError(f"{rule}: it has results of {others[0]}, which its methods do not name")
    keys = [(figure.method, figure.game, figure.seed, figure.measure) for figure in figures]
    if len(set(keys)) < len(keys):
        raise UserError(f"{rule}: a figure stands in it twice")
