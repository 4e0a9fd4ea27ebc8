"""The figure of a comparison: exploitability against oracle queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlhf_zoo.callbacks import read_history
from nlhf_zoo.cli.compare.runs import METRICS, Array
from nlhf_zoo.cli.compare.tables import EntryResult, by_game

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind can tell apart; yellow is too pale for a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "-.", (0, (1, 1)))
_POINTS = 1500  # of a line
_FLOOR = 1e-16  # what is below is rounding, and would squeeze the rest
_COLUMNS = 3


def draw(
    results: Sequence[EntryResult],
    path: Path,
    algorithms: list[str],
    exploitability: str,
    log_queries: bool,
) -> None:
    """Draw a panel a game: a line an algorithm, mean over games and seeds, and faintly the maximum.

    The place of an algorithm among all gives its line a colour.
    """
    import matplotlib as mpl  # slow to import, and needed at the end only
    from matplotlib.figure import Figure

    panels = by_game(results)
    columns = min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(1.2 + 4.2 * columns, 1.3 + 3.5 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        handles: dict[str, Artist] = {}
        for ax, panel in zip(axes, panels, strict=False):
            _panel(ax, panel, algorithms, exploitability == "regularised", log_queries)
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
    ax: Axes, panel: list[EntryResult], algorithms: list[str], regularised: bool, log_queries: bool
) -> None:
    metric = METRICS["regularised" if regularised else "unregularised"]
    curves = [_curve(result, metric, log_queries) for result in panel]
    for result, (queries, mean, most) in zip(panel, curves, strict=True):
        name = result.entry.algorithm
        number = algorithms.index(name)
        colour = _COLOURS[number % len(_COLOURS)]
        dashes = _DASHES[number // len(_COLOURS) % len(_DASHES)]
        width = 1.5 if number % 2 else 3.0  # of two lines that coincide, both can be seen
        ax.plot(queries, mean, color=colour, linestyle=dashes, linewidth=width, label=name)
        ax.plot(queries, most, color=colour, linestyle=dashes, linewidth=0.8, alpha=0.5)
    ax.set_yscale("log")
    reached = max(queries[-1] for queries, _, _ in curves)
    if regularised and all(result.entry.enumerated for result in panel):
        # The theory's rate (1 + 2 beta)^(-N / 2), from where the runs start.
        queries = np.linspace(0, reached, _POINTS)
        if log_queries:
            queries = np.geomspace(1, max(reached, 1), _POINTS)
        rate = curves[0][1][0] * (1 + 2 * panel[0].entry.beta) ** (-queries / 2)
        shown = rate >= _FLOOR
        label = r"theory's rate $(1+2\beta)^{-N/2}$"
        ax.plot(queries[shown], rate[shown], color="0.35", ls="--", linewidth=1.2, label=label)
    if log_queries:
        ax.set_xscale("symlog", linthresh=1)
    low, high = ax.get_ylim()
    ax.set(xlim=(0, max(reached, 1)), ylim=(max(low, _FLOOR), high))
    ax.set(title=panel[0].title, xlabel="oracle queries per prompt")
    ax.grid(alpha=0.25)


def _curve(result: EntryResult, metric: str, log_queries: bool) -> tuple[Array, Array, Array]:
    """Queries, mean and maximum over games and seeds, [R] each, as far as all seeds went."""
    histories = [read_history(run.task.folder) for run in result.runs]
    length = min(len(history["queries"]) for history in histories)
    curves = np.concatenate([history[metric][:length] for history in histories], 1)
    queries: Array = histories[0]["queries"][:length]
    rows = np.linspace(0, length - 1, _POINTS).astype(int)
    if log_queries:
        rows = np.geomspace(1, length, _POINTS).astype(int) - 1
    rows = np.unique(rows)
    return queries[rows], curves.mean(1)[rows], curves.max(1)[rows]
