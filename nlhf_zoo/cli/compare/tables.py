"""What a comparison shows: CSV and Markdown files, the tables in print, and the figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nlhf_zoo.callbacks import read_history
from nlhf_zoo.callbacks.exact_metrics import QUERIES_OF_GAMES
from nlhf_zoo.cli.compare.entries import Entry
from nlhf_zoo.cli.compare.runs import METRICS, Array, RunResult, queries_of_games
from nlhf_zoo.metrics.figures.canvas import new_figure, plain
from nlhf_zoo.metrics.figures.games import FLOOR, draw_theory
from nlhf_zoo.metrics.figures.styles import MEAN_WIDTH, WORST_WIDTH, Dashes, colour_of, dashes_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# The figures of a run, as tables head them.
_HEADS = {"exploitability": "exploitability", "kl_to_nash": "KL(π*‖π)", "span": "span"}
COLUMNS = ("game", "algorithm", "seed", "queries", "rounds", *_HEADS, "seconds")
_TARGET_COLUMNS = ("game", "beta", "algorithm", "best", "median_queries", "reached", "instances")
_POINTS = 1500  # of a line
_PANELS = 3  # beside each other


@dataclass(frozen=True, slots=True)
class EntryResult:
    """The runs of one entry, a run a seed."""

    runs: list[RunResult]  # that are reported
    best: bool = True  # whether it has the best value of its sweep; so where nothing is swept
    trials: list[RunResult] = field(default_factory=list)  # that chose it, where these are others

    @property
    def entry(self) -> Entry:
        """The entry whose runs these are."""
        return self.runs[0].task.entry

    @property
    def title(self) -> str:
        """The game and its temperature, for people."""
        return f"{self.entry.game}, β = {self.entry.beta:g}"

    def figures(self, name: str) -> Array:
        """A figure of the runs, over all games and seeds."""
        return np.concatenate([run.figures[name] for run in self.runs])

    def rank(self) -> tuple[float, float]:
        """The smaller the better: median of the queries to the target, then mean exploitability.

        A median of exploitabilities would hide the game that failed.
        """
        has_target = "to_target" in self.runs[0].figures
        queries = float(np.median(self.figures("to_target"))) if has_target else 0.0
        return queries, float(np.mean(self.figures("exploitability")))


def choose_best(rivals: Sequence[EntryResult]) -> list[EntryResult]:
    """The results of one algorithm on one game, one a choice of a sweep, with the best marked."""
    best = min(rivals, key=EntryResult.rank, default=None)
    return [EntryResult(rival.runs, rival is best) for rival in rivals]


def by_game(results: Sequence[EntryResult]) -> list[list[EntryResult]]:
    """Those with the best value of their sweep, a list for each game and temperature."""
    best = [result for result in results if result.best]
    return [list(group) for _, group in groupby(best, key=lambda result: result.title)]


def results_csv(results: Sequence[EntryResult]) -> str:
    """One row for each independent game, algorithm and seed."""
    rows: list[tuple[object, ...]] = []
    for result in results:
        for run in [*result.trials, *result.runs]:
            ends = np.stack([run.figures[name] for name in _HEADS], 1).tolist()  # [C, 3]
            for number, end in enumerate(ends):
                game = run.task.entry.where + (f"[{number}]" if len(ends) > 1 else "")
                played = (game, run.task.entry.label, run.task.seed, run.queries, run.rounds)
                rows.append((*played, *end, round(run.seconds, 3)))
    return _csv(COLUMNS, rows)


def targets_csv(results: Sequence[EntryResult]) -> str:
    """One row for each entry: the median of the queries to the target over games and seeds."""
    rows = []
    for result in results:
        entry, queries = result.entry, result.figures("to_target")
        reached = int(np.isfinite(queries).sum())
        count = (float(np.median(queries)), reached, len(queries))
        rows.append((entry.game, entry.beta, entry.label, int(result.best), *count))
    return _csv(_TARGET_COLUMNS, rows)


def _csv(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def results_markdown(results: Sequence[EntryResult]) -> str:
    """Mean and maximum of each figure over games and seeds."""
    heads = [text for head in _HEADS.values() for text in (f"{head}, mean", "max")]
    rows = [["game", "algorithm", "queries", *heads, "e(π*), worst"]]
    for result in chain(*by_game(results)):
        rows.append([result.title, *_row(result), f"{_certificate([result]):.2e}"])
    return _markdown(rows)


def results_text(results: Sequence[EntryResult]) -> str:
    """The same for a terminal: a section a game."""
    lines = []
    above = ["", "", *(text for head in _HEADS.values() for text in (head, ""))]
    for section in by_game(results):
        runs = section[0].runs
        games, seeds = len(runs[0].figures["span"]), len(runs)
        counted = f"{games} games, " if games > 1 else ""
        counted += "1 seed" if seeds == 1 else f"{seeds} seeds"
        lines.append(f"{section[0].title}: {counted}, π* exact to {_certificate(section):.1e}")
        rows = [["algorithm", "queries", *("mean", "max") * len(_HEADS)], *map(_row, section)]
        lines += ["  ".join(cells).rstrip() for cells in _aligned([above, *rows], rows)]
        lines.append("")
    return "\n".join(lines)


def targets_markdown(results: Sequence[EntryResult], names: list[str], missed: str) -> str:
    """The queries to the target, a row for each game and beta, a column for each algorithm."""
    rows = [["game", *names]]
    for section in by_game(results):
        cells = {}
        for result in section:
            entry, median = result.entry, float(np.median(result.figures("to_target")))
            reached = f"{median:g}{entry.label.removeprefix(entry.algorithm)}"
            cells[entry.algorithm] = reached if np.isfinite(median) else missed
        rows.append([section[0].title, *(cells[name] for name in names)])
    return _markdown(rows)


def _certificate(results: Sequence[EntryResult]) -> float:
    return max(run.certificate for result in results for run in result.runs)


def _row(result: EntryResult) -> list[str]:
    """Label, queries, and mean and maximum of each figure."""
    queries = sorted({run.queries for run in result.runs})
    asked = f"{queries[0]}" if len(queries) == 1 else f"{queries[0]} to {queries[-1]}"
    figures = [f(result.figures(name)) for name in _HEADS for f in (np.mean, np.max)]
    return [result.entry.label, asked, *(f"{figure:.2e}" for figure in figures)]


def _markdown(rows: list[list[str]]) -> str:
    """A table in Markdown whose first row is the head, aligned for reading as text too."""
    texts = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    texts = _aligned(texts, [*texts, ["---"] * len(rows[0])])
    lines = [f"| {' | '.join(row)} |" for row in texts]
    lines.insert(1, f"|{'|'.join('-' * (len(cell) + 2) for cell in texts[0])}|")
    return "\n".join(lines) + "\n"


def _aligned(rows: list[list[str]], measured: list[list[str]]) -> list[list[str]]:
    """Rows whose cells are as wide as the widest measured one of their column."""
    widths = [max(map(len, column)) for column in zip(*measured, strict=True)]
    return [[c.ljust(width) for c, width in zip(row, widths, strict=True)] for row in rows]


def draw(
    results: Sequence[EntryResult], path: Path, exploitability: str, log_queries: bool
) -> None:
    """Draw a panel a game: a line an algorithm, mean over games and seeds, and faintly the maximum.

    The algorithm's class gives its line a colour; those of one class differ in their dashes.
    """
    panels = by_game(results)
    kinds = {result.entry.algorithm: result.entry.kind for panel in panels for result in panel}
    dashes = dict(zip(kinds, dashes_of([*kinds.values()]), strict=True))
    columns = min(len(panels), _PANELS)
    rows = math.ceil(len(panels) / columns)
    with new_figure(1.2 + 4.2 * columns, 1.3 + 3.5 * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        handles: dict[str, Artist] = {}
        for ax, panel in zip(axes, panels, strict=False):
            _panel(ax, panel, dashes, exploitability == "regularised", log_queries)
            lines, labels = ax.get_legend_handles_labels()
            handles |= dict(zip(labels, lines, strict=True))
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax in axes[: len(panels) : columns]:
            ax.set_ylabel(f"{exploitability} exploitability")
        ncols = 2 if columns == 1 else 4
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=ncols, frameon=False
        )
        figure.savefig(path, dpi=150, format="png")


def _panel(
    ax: Axes,
    panel: list[EntryResult],
    dashes: dict[str, Dashes],
    regularised: bool,
    log_queries: bool,
) -> None:
    metric = METRICS["regularised" if regularised else "unregularised"]
    curves = [_curve(result, metric, log_queries) for result in panel]
    for result, (queries, mean, most) in zip(panel, curves, strict=True):
        name = result.entry.algorithm
        style: dict[str, Any] = {"color": colour_of(result.entry.kind), "linestyle": dashes[name]}
        style["zorder"] = 2.0 if dashes[name] == "-" else 2.1  # what is dashed hides no line
        ax.plot(queries, mean, linewidth=MEAN_WIDTH, label=plain(name), **style)
        ax.plot(queries, most, linewidth=WORST_WIDTH, alpha=0.5, **style)
    ax.set_yscale("log")
    reached = max(queries[-1] for queries, _, _ in curves)
    if regularised and all(result.entry.enumerated for result in panel):
        queries = np.linspace(0, reached, _POINTS)
        if log_queries:
            queries = np.geomspace(1, max(reached, 1), _POINTS)
        entry = panel[0].entry
        draw_theory(ax, curves[0][1][0], entry.beta / entry.payoff_range, queries)
    if log_queries:
        ax.set_xscale("symlog", linthresh=1)
    low, high = ax.get_ylim()
    ax.set(xlim=(0, max(reached, 1)), ylim=(max(low, FLOOR), high))
    ax.set(title=plain(panel[0].title), xlabel="oracle queries per prompt")
    ax.grid(alpha=0.25)


def _curve(result: EntryResult, metric: str, log_queries: bool) -> tuple[Array, Array, Array]:
    """Queries, mean and maximum over games and seeds, [R] each, as far as all seeds went."""
    histories = [read_history(run.task.folder) for run in result.runs]
    if any(QUERIES_OF_GAMES in history for history in histories):
        queries, curves = _by_queries(histories, metric)
        length = len(queries)
    else:  # all of them have asked alike
        length = min(len(history["queries"]) for history in histories)
        curves = np.concatenate([history[metric][:length] for history in histories], 1)
        queries = histories[0]["queries"][:length]
    rows = np.linspace(0, length - 1, _POINTS).astype(int)
    if log_queries:
        rows = np.geomspace(1, length, _POINTS).astype(int) - 1
    rows = np.unique(rows)
    return queries[rows], curves.mean(1)[rows], curves.max(1)[rows]


def _by_queries(histories: Sequence[dict[str, Any]], metric: str) -> tuple[Array, Array]:
    """Where games ask each by itself: queries [Q], and what each game has with so many [Q, C]."""
    games = [
        (asked, values)
        for history in histories
        for asked, values in zip(queries_of_games(history).T, history[metric].T, strict=True)
    ]
    queries = np.unique(np.concatenate([asked for asked, _ in games]))
    queries = queries[queries <= min(asked[-1] for asked, _ in games)]
    columns = [values[np.searchsorted(asked, queries, side="right") - 1] for asked, values in games]
    return queries, np.stack(columns, 1)
