"""The tables of a comparison: CSV and Markdown files, and what the terminal shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from nlhf_zoo.cli.compare.configuration import Configuration
from nlhf_zoo.cli.compare.runs import Array, Run

COLUMNS = (
    "game",
    "algorithm",
    "seed",
    "queries",
    "rounds",
    "exploitability",
    "kl_to_nash",
    "span",
    "seconds",
)
_TARGET_COLUMNS = ("game", "beta", "algorithm", "best", "median_queries", "reached", "instances")
_FIGURES = ("exploitability", "kl_to_nash", "span")
_HEADS = ("exploitability", "KL(π*‖π)", "span")


@dataclass(frozen=True, slots=True)
class Entry:
    """The runs of one contender, a run a seed.

    Args:
        runs: of one contender; those that are reported.
        best: whether it has the best value of its sweep; True where nothing is swept.
        trials: runs by which it was chosen of its sweep, where these are others than reported.
    """

    runs: list[Run]
    best: bool = True
    trials: list[Run] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Name of the algorithm, with the value that is swept."""
        return self.runs[0].contender.label

    @property
    def to_target(self) -> Array:
        """Queries to the target, over all games and seeds; inf where it was not reached."""
        return np.concatenate([run.to_target for run in self.runs if run.to_target is not None])

    def figures(self, name: str) -> Array:
        """A figure at the end, over all games and seeds."""
        return np.concatenate([getattr(run, name) for run in self.runs])

    def rank(self) -> tuple[float, float]:
        """The smaller the better: median of the queries to the target, then mean exploitability.

        A median of exploitabilities would hide the game that failed.
        """
        reached = self.runs[0].to_target is not None
        queries = float(np.median(self.to_target)) if reached else 0.0
        return queries, float(np.mean(self.figures("exploitability")))


def choose_best(entries: Sequence[Entry]) -> list[Entry]:
    """The entries of one algorithm on one game, one a swept value, with the best marked."""
    best = min(entries, key=Entry.rank)
    return [Entry(entry.runs, entry is best) for entry in entries]


def results_csv(entries: Sequence[Entry]) -> str:
    """One row for each independent game, algorithm and seed."""
    rows = []
    for entry in entries:
        for run in [*entry.trials, *entry.runs]:
            games, where = len(run.exploitability), run.contender.where
            for i in range(games):
                rows.append(
                    (
                        f"{where}[{i}]" if games > 1 else where,
                        entry.label,
                        run.seed,
                        run.queries,
                        run.rounds,
                        *(float(getattr(run, name)[i]) for name in _FIGURES),
                        round(run.seconds, 3),
                    )
                )
    return _csv(COLUMNS, rows)


def targets_csv(entries: Sequence[Entry]) -> str:
    """One row for each contender: the median of the queries to the target over games and seeds."""
    rows = []
    for entry in entries:
        contender, queries = entry.runs[0].contender, entry.to_target
        reached = int(np.isfinite(queries).sum())
        median = float(np.median(queries))
        rows.append(
            (
                contender.game,
                contender.beta,
                entry.label,
                int(entry.best),
                median,
                reached,
                len(queries),
            )
        )
    return _csv(_TARGET_COLUMNS, rows)


def results_table(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: mean and maximum of each figure over games and seeds."""
    head = ["game", "algorithm", "queries"]
    for name in _HEADS:
        head += [f"{name}, mean", "max"]
    head.append("e(π*), worst")
    rows = []
    for entry in entries:
        if entry.best:
            certificate = max(run.certificate for run in entry.runs)
            rows.append([title(entry), *_row(entry), f"{certificate:.2e}"])
    return head, rows


def terminal(entries: Sequence[Entry]) -> str:
    """The same for a terminal: a section a game."""
    sections = []
    for name, group in groupby((entry for entry in entries if entry.best), key=title):
        section = list(group)
        rows = [["", "", *(text for head in _HEADS for text in (head, ""))]]
        rows += [["algorithm", "queries", *("mean", "max") * len(_HEADS)], *map(_row, section)]
        widths = [max(len(row[i]) for row in rows[1:]) for i in range(len(rows[1]))]
        runs = [run for entry in section for run in entry.runs]
        games, certificate = len(runs[0].exploitability), max(run.certificate for run in runs)
        counted = f"{games} games, " if games > 1 else ""
        counted += "1 seed" if len(section[0].runs) == 1 else f"{len(section[0].runs)} seeds"
        sections.append(f"{name}: {counted}, π* exact to {certificate:.1e}")
        for row in rows:
            sections.append(
                "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            )
        sections.append("")
    return "\n".join(sections)


def _row(entry: Entry) -> list[str]:
    """Label, queries, and mean and maximum of each figure."""
    queries = sorted({run.queries for run in entry.runs})
    asked = f"{queries[0]}" if len(queries) == 1 else f"{queries[0]} to {queries[-1]}"
    figures = [f(entry.figures(name)) for name in _FIGURES for f in (np.mean, np.max)]
    return [entry.label, asked, *(f"{x:.2e}" for x in figures)]


def targets_table(
    entries: Sequence[Entry], configuration: Configuration
) -> tuple[list[str], list[list[str]]]:
    """Head and rows: for each game and beta, the queries to the target of each algorithm."""
    names = list(configuration.algorithms)
    budget = configuration.budget
    missed = (
        f"not in {budget.queries:,}"
        if budget.queries is not None
        else f"not in {budget.rounds:,} rounds"
    )
    cells: dict[str, dict[str, str]] = {}
    for entry in entries:
        if entry.best:
            contender = entry.runs[0].contender
            median = float(np.median(entry.to_target))
            cell = f"{median:g}" if np.isfinite(median) else missed
            if contender.value is not None and np.isfinite(median):
                cell += " " + entry.label.removeprefix(contender.algorithm + " ")
            cells.setdefault(title(entry), {})[contender.algorithm] = cell
    return ["game", *names], [[game, *(row[name] for name in names)] for game, row in cells.items()]


def title(entry: Entry) -> str:
    """A game and its temperature, for people."""
    contender = entry.runs[0].contender
    return f"{contender.game}, β = {contender.beta:g}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, aligned for reading as text too."""
    texts = [[cell.replace("|", r"\|") for cell in row] for row in [head, *rows]]
    widths = [max(3, *(len(row[i]) for row in texts)) for i in range(len(head))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in texts
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines) + "\n"


def _csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
