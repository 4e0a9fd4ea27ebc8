"""The figure of a comparison: exploitability against oracle queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlhf_zoo.callbacks import read_history
from nlhf_zoo.cli.compare.configuration import Configuration
from nlhf_zoo.cli.compare.runs import Array, metric_of
from nlhf_zoo.cli.compare.tables import Entry, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind can tell apart; yellow is too pale for a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "-.", (0, (1, 1)))
_POINTS = 1500  # of a line
_FLOOR = 1e-16  # what is below is rounding, and would squeeze the rest
_COLUMNS = 3


def draw(entries: Sequence[Entry], configuration: Configuration, path: Path) -> None:
    """Draw a panel a game: a line an algorithm, mean over games and seeds, and faintly the maximum.

    Args:
        entries: those of a game and beta stand together.
        configuration: of the comparison.
        path: of the PNG.
    """
    import matplotlib as mpl  # slow to import, and needed at the end only
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [list(group) for _, group in groupby((e for e in entries if e.best), key=title)]
    columns = min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(1.2 + 4.2 * columns, 1.3 + 3.5 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        names = list(configuration.algorithms)
        for ax, panel in zip(axes, panels, strict=False):
            _panel(ax, panel, configuration, names)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax in axes[: len(panels) : columns]:
            ax.set_ylabel(f"{configuration.exploitability} exploitability")
        handles = {
            label: handle
            for ax in axes
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=2 if columns == 1 else 4,
            frameon=False,
        )
        figure.savefig(path, dpi=150, format="png")


def _panel(ax: Axes, panel: list[Entry], configuration: Configuration, names: list[str]) -> None:
    reached = 0.0
    for entry in panel:
        number = names.index(entry.runs[0].contender.algorithm)
        colour = _COLOURS[number % len(_COLOURS)]
        style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
        width = 1.5 if number % 2 else 3.0  # of two lines that coincide, both can be seen
        queries, mean, most = _curve(entry, configuration)
        ax.plot(queries, mean, color=colour, linestyle=style, linewidth=width, label=names[number])
        ax.plot(queries, most, color=colour, linestyle=style, linewidth=0.8, alpha=0.5)
        reached = max(reached, queries[-1])
    ax.set_yscale("log")
    enumerated = all(entry.runs[0].contender.enumerated for entry in panel)
    if configuration.exploitability == "regularised" and enumerated:
        _rate(ax, panel[0], configuration, reached)
    if configuration.queries_axis == "log":
        ax.set_xscale("symlog", linthresh=1)
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, _FLOOR), high)
    ax.set_xlim(0, max(reached, 1))
    ax.set_title(title(panel[0]))
    ax.set_xlabel("oracle queries per prompt")
    ax.grid(alpha=0.25)


def _rate(ax: Axes, entry: Entry, configuration: Configuration, reached: float) -> None:
    """The theory's rate (1 + 2 beta)^(-N / 2), from where the runs start."""
    _, mean, _ = _curve(entry, configuration)
    queries = np.linspace(0, reached, _POINTS)
    if configuration.queries_axis == "log":
        queries = np.geomspace(1, max(reached, 1), _POINTS)
    rate = mean[0] * (1 + 2 * entry.runs[0].contender.beta) ** (-queries / 2)
    shown = rate >= _FLOOR
    label = r"theory's rate $(1+2\beta)^{-N/2}$"
    ax.plot(queries[shown], rate[shown], color="0.35", linestyle="--", linewidth=1.2, label=label)


def _curve(entry: Entry, configuration: Configuration) -> tuple[Array, Array, Array]:
    """Queries, mean and maximum over games and seeds, [R] each, as far as all seeds went."""
    histories = [read_history(run.folder) for run in entry.runs]
    length = min(len(history["queries"]) for history in histories)
    metric = metric_of(configuration)
    curves = np.concatenate([history[metric][:length] for history in histories], 1)
    queries: Array = histories[0]["queries"][:length]
    if configuration.queries_axis == "log":
        rows = np.unique(np.geomspace(1, length, _POINTS).astype(int)) - 1
    else:
        rows = np.unique(np.linspace(0, length - 1, _POINTS).astype(int))
    return queries[rows], curves.mean(1)[rows], curves.max(1)[rows]
