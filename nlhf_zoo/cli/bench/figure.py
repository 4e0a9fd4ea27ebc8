"""The figure: exploitability over queries, a panel for each condition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nlhf_zoo.cli.bench.played import Played, points
from nlhf_zoo.cli.bench.results import FLOOR
from nlhf_zoo.files import written
from nlhf_zoo.metrics.figures.canvas import DPI, new_figure, plain
from nlhf_zoo.metrics.figures.curves import lines_of


def draw(
    played: Sequence[Played], kinds: dict[str, str], queries: int, xlabel: str, path: Path
) -> None:
    """Geometric means over games and seeds, one line a method.

    Args:
        played: what was played.
        kinds: the class of each method, which gives the colour, by its name.
        queries: the budget.
        xlabel: what the queries are of.
        path: the PNG file to write.
    """
    conditions = list(dict.fromkeys(one.condition for one in played))
    lines = {line.name: line for line in lines_of(kinds)}
    with new_figure(5.2 * len(conditions), 4.6) as figure, written(path) as beside:
        axes = figure.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
        for ax, condition in zip(axes, conditions, strict=True):
            own = [one for one in played if one.condition == condition]
            # Of lines that coincide all can be seen: later ones are thinner.
            for one, width in zip(own, np.linspace(4, 1.2, len(own)), strict=True):
                line = lines[one.method]
                curve = np.exp(np.log(np.maximum(one.curve, FLOOR)).mean(-1))
                ax.plot(
                    points(queries), curve, color=line.colour, ls=line.dashes, lw=width,
                    label=plain(line.name),
                )  # fmt: skip
            ax.set(xscale="log", yscale="log", title=condition, xlabel=xlabel)
            ax.grid(alpha=0.25)
        axes[0].set_ylabel("exploitability, geometric mean")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(beside, format="png", dpi=DPI)
