"""A chart of several runs: one line a run, told apart by colour and dashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.metrics.figures.canvas import plain
from nlhf_zoo.metrics.figures.games import FLOOR
from nlhf_zoo.metrics.figures.styles import MEAN_WIDTH, Dashes, colour_of, dashes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

_POINTS = 600  # of a line
_LONGEST = 40  # characters of a name in a legend
_SPAN = 30  # a factor above which an axis is logarithmic


@dataclass(frozen=True, slots=True)
class Line:
    """A run's line: what it is called, and how it looks."""

    name: str
    colour: str
    dashes: Dashes


def lines_of(runs: Mapping[str, str]) -> list[Line]:
    """Lines of runs, by their names the classes of their algorithms, which give the colours."""
    styles = zip(runs.items(), dashes_of([*runs.values()]), strict=True)
    return [Line(name, colour_of(kind), dashes) for (name, kind), dashes in styles]


def draw_curves(
    ax: Axes, curves: Sequence[tuple[Line, Array, Array]], axis: str, label: str, digits: bool
) -> None:
    """Curves of runs over one axis, which is logarithmic where one run is much longer than another.

    Args:
        ax: what is drawn into.
        curves: a line, its steps and its values [R]; what is not finite is left out.
        axis: what the steps are.
        label: what the values are, and their unit.
        digits: whether values that span more than a factor of 30 are shown on a logarithmic axis.
    """
    values = np.concatenate([each[np.isfinite(each)] for _, _, each in curves])
    ends = [steps[-1] for _, steps, _ in curves if len(steps)]
    by_digits = max(ends, default=0) > _SPAN * max(min(ends, default=0), 1)
    for line, steps, figures in curves:
        rows = np.linspace(0, len(steps) - 1, _POINTS)
        if by_digits:
            rows = np.geomspace(1, len(steps), _POINTS) - 1
        rows = np.unique(rows.astype(int))
        marker = "." if len(rows) <= 12 else ""
        name = line.name if len(line.name) <= _LONGEST else f"…{line.name[1 - _LONGEST :]}"
        ax.plot(
            steps[rows], figures[rows], color=line.colour, ls=line.dashes, marker=marker,
            linewidth=MEAN_WIDTH, label=plain(name),
        )  # fmt: skip
    if by_digits:
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(left=0)
    if (
        digits
        and len(values)
        and values.min() >= 0
        and values.max() > _SPAN * max(values.min(), FLOOR)
    ):
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        ax.set_ylim(max(low, FLOOR), high)
    ax.set(xlabel=axis, ylabel=label)
    ax.grid(alpha=0.25)
    if len(curves) > 1:
        ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=9)
