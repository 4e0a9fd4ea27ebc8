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

FORMAT = "nlhf bench 1"
FLOOR = 1e-12  # exploitability below it is zero: other machines round otherwise there
SOLVED = 1e-6
LEVEL = 0.98  # of the intervals


@dataclass(frozen=True, slots=True)
class Figure:
    """One exploitability.

    Args:
        method: whose.
        game: its name, with the part's own conditions, as beta.
        seed: of the game or the run.
        exploitability: when the budget was spent.
    """

    method: str
    game: str
    seed: int
    exploitability: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a method under one condition, such as a beta.

    Args:
        mean: geometric mean over games and seeds, exploitability below `FLOOR` counted as that.
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


def summary(figures: Sequence[Figure]) -> Summary:
    r"""Statistics of figures of several seeds, each on the same games.

    With m_i the mean of log exploitability over the games of seed i, of n seeds, and s their
    standard deviation, the interval is

    .. math:: \bar m \pm t_{n-1} \, s \sqrt{2 / n},

    that of the mean of n other seeds and not, which would be narrower, of the mean over all seeds;
    it is exact where the m_i are normal. One seed has no interval, nor has what left
    the numbers.
    """
    from scipy.stats import t as student  # late: it takes long

    values = np.array([figure.exploitability for figure in figures])
    logs = np.log(np.maximum(values, FLOOR))
    seeds = sorted({figure.seed for figure in figures})
    of_seed = np.array([figure.seed for figure in figures])
    means = np.array([logs[of_seed == seed].mean() for seed in seeds])
    number, half = len(seeds), math.nan
    if number > 1 and np.isfinite(means).all():
        half = float(
            student.ppf((1 + LEVEL) / 2, number - 1) * means.std(ddof=1) * math.sqrt(2 / number)
        )
    centre = float(means.mean())
    with np.errstate(over="ignore"):  # an end beyond the numbers is infinite
        low, mean, high = np.exp([centre - half, centre, centre + half]).tolist()
    solved = float((values < SOLVED).mean())
    return Summary(mean, low, high, float(values.max()), solved)


def summaries(
    figures: Sequence[Figure], conditions: Sequence[str]
) -> dict[str, dict[str, Summary]]:
    """By method and condition, which is what the name of a game ends with."""
    found: dict[str, dict[str, Summary]] = {}
    for method in dict.fromkeys(figure.method for figure in figures):
        own = [figure for figure in figures if figure.method == method]
        found[method] = {
            condition: summary([figure for figure in own if figure.game.endswith(condition)])
            for condition in conditions
        }
    return found


def table(found: Mapping[str, Mapping[str, Summary]], conditions: Sequence[str]) -> str:
    """A table in Markdown, the best of the first condition first."""
    head = "| algorithm |" + "".join(f" {c} | worst | solved |" for c in conditions)
    lines = [head, "|---|" + "---:|---:|---:|" * len(conditions)]
    order = sorted(found, key=lambda method: found[method][conditions[0]].mean)
    for method in order:
        cells = []
        for condition in conditions:
            one = found[method][condition]
            ends = "" if math.isnan(one.low) else f" ({_number(one.low)} to {_number(one.high)})"
            cells += [f"{_number(one.mean)}{ends}", _number(one.worst), f"{one.solved:.0%}"]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float) -> str:
    if value <= FLOOR * 1.001:
        return f"{FLOOR:.0e}"
    return f"{value:.1e}" if value < 1e-3 else f"{value:.4f}"


def content(
    part: str, methods: Sequence[Method], figures: Sequence[Figure], seeds: list[int], queries: int
) -> dict[str, Any]:
    """A submission, as it is written to JSON."""
    return {
        "format": FORMAT,
        "part": part,
        "nlhf_zoo": __version__,
        "seeds": seeds,
        "queries": queries,
        "methods": {m.name: {"algorithm": m.block, "source": m.source} for m in methods},
        "results": [[f.method, f.game, f.seed, f.exploitability] for f in figures],
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
    kinds = {"part": str, "seeds": list, "queries": int, "methods": dict, "results": list}
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind):
            raise UserError(f"{rule}: {key} is missing, or damaged")
    try:
        found["results"] = [
            Figure(str(m), str(g), int(s), float(e)) for m, g, s, e in found["results"]
        ]
        found["blocks"] = {name: dict(own["algorithm"]) for name, own in found["methods"].items()}
        found["seeds"] = [int(seed) for seed in found["seeds"]]
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{rule}: its methods or results are damaged") from error
    return found
