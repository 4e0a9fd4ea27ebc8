"""The figure: exploitability over queries and where it ends, a column for each condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlhf_zoo.cli.bench.played import Played, points
from nlhf_zoo.cli.bench.results import EXPLOITABILITY, FLOOR, HELD_OUT, Summaries, order
from nlhf_zoo.files import written
from nlhf_zoo.metrics.figures.canvas import DPI, new_figure, plain
from nlhf_zoo.metrics.figures.curves import Line, lines_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Mapping[str, Line]


def draw(
    played: Sequence[Played],
    found: Summaries,
    geometric: bool,
    queries: int,
    xlabel: str,
    path: Path,
) -> None:
    """Curves, one line a method, and below them what each method ends at, with its intervals.

    Args:
        played: what was played.
        found: its summaries.
        geometric: whether means of exploitability are geometric.
        queries: the budget.
        xlabel: what the queries are of.
        path: the PNG file to write.
    """
    conditions = list(dict.fromkeys(one.condition for one in played))
    lines = {line.name: line for line in lines_of({method: method for method in found})}
    with_curves = all(one.curve is not None for one in played)
    rows = [4.4] * with_curves + [0.5 + 0.22 * len(found)]
    with new_figure(5.2 * len(conditions), sum(rows) + 1) as figure, written(path) as beside:
        axes = figure.subplots(
            len(rows), len(conditions), sharey="row", squeeze=False, height_ratios=rows
        )
        for column, condition in enumerate(conditions):
            if with_curves:
                own = [one for one in played if one.condition == condition]
                _draw_curves(axes[0, column], own, lines, queries)
                axes[0, column].set(title=condition, xlabel=xlabel)
            _draw_ends(axes[-1, column], found, condition, lines, geometric)
        if with_curves:
            axes[0, 0].set_ylabel("exploitability, geometric mean")
            handles, labels = axes[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(beside, format="png", dpi=DPI)


def _draw_curves(ax: Axes, played: Sequence[Played], lines: Lines, queries: int) -> None:
    """Exploitability over queries, geometric means over games and seeds."""
    # Of lines that coincide all can be seen: later ones are thinner.
    for one, width in zip(played, np.linspace(4, 1.2, len(played)), strict=True):
        assert one.curve is not None
        line = lines[one.method]
        curve = np.exp(np.log(np.maximum(one.curve, FLOOR)).mean(-1))
        ax.plot(
            points(queries), curve, color=line.colour, ls=line.dashes, lw=width,
            label=plain(line.name),
        )  # fmt: skip
    ax.set(xscale="log", yscale="log")
    ax.grid(alpha=0.25)


def _draw_ends(ax: Axes, found: Summaries, condition: str, lines: Lines, geometric: bool) -> None:
    """What each method ends at: filled by the oracle that trained it, open by the held-out one."""
    names = order(found, next(iter(found[next(iter(found))])))[::-1]
    for place, name in enumerate(names):
        for measure, fill, shift in ((EXPLOITABILITY, "full", 0.15), (HELD_OUT, "none", -0.15)):
            one = found[name][condition][measure]
            if not np.isfinite(one.mean):
                continue
            ends = [[one.mean - one.low], [one.high - one.mean]]
            ax.errorbar(
                one.mean, place + shift, fmt="o", ms=5, color=lines[name].colour, capsize=2, lw=1,
                fillstyle=fill, xerr=ends if np.isfinite(ends).all() else None,
            )  # fmt: skip
    ax.set_yticks(range(len(names)), [plain(name) for name in names])
    ax.set(xlabel="exploitability: filled trained, open held-out")
    if geometric:
        ax.set_xscale("log")
    ax.grid(axis="x", alpha=0.25)
