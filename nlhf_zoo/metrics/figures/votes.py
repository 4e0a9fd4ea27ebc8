"""Figures of votes: a lottery with its intervals, and the graph of who beats whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.metrics.figures.styles import BLUE, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

_GREY = "0.6"


def draw_lottery(ax: Axes, probability: Array, names: Sequence[str], ends: Array | None) -> None:
    """Bars of probabilities, the first on top, with their intervals where there are some.

    Args:
        ax: what is drawn into.
        probability: of each alternative [N].
        names: of the alternatives.
        ends: lower and upper ends of the intervals [2, N], NaN where there is none.
    """
    places = np.arange(len(names))
    ax.barh(places, probability, color=BLUE, alpha=0.75, height=0.65)
    if ends is not None:
        ax.hlines(places, ends[0], ends[1], color="black", linewidth=1.5)
        for end in ends:
            ax.plot(end, places, ls="", marker="|", color="black", markersize=8)
    ax.set_yticks(places, names)
    ax.set(xlim=(0, 1.02), xlabel="probability in the equilibrium")
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="x", alpha=0.25)


def in_cycles(wins: Bools) -> Bools:
    """Which wins are an edge of a cyclic triple, bool [N, N]."""
    number = wins.astype(np.int64)
    return wins & ((number @ number).T > 0)


def draw_majority(ax: Axes, wins: Bools, smith: Bools, names: Sequence[str]) -> None:
    """The majority graph on a circle: an arrow goes from who wins to who loses; ties have none.

    Members of the Smith set are filled, and wins that lie on a cyclic triple stand out.

    Args:
        ax: what is drawn into.
        wins: whether the row's alternative beats the column's [N, N].
        smith: which alternatives are in the Smith set [N].
        names: of the alternatives.
    """
    num = len(names)
    angle = np.pi / 2 - 2 * np.pi * np.arange(num) / num
    x, y = np.cos(angle), np.sin(angle)
    cyclic = in_cycles(wins)
    for one, other in zip(*wins.nonzero(), strict=True):
        own = cyclic[one, other]
        ax.annotate(
            "",
            xy=(x[other], y[other]),
            xytext=(x[one], y[one]),
            arrowprops={
                "arrowstyle": "-|>",
                "color": ORANGE if own else _GREY,
                "linewidth": 1.8 if own else 0.9,
                "shrinkA": 8,
                "shrinkB": 8,
                "zorder": 2 if own else 1,
            },
        )
    filled = [BLUE if member else "white" for member in smith]
    ax.scatter(x, y, s=110, c=filled, edgecolors=BLUE, linewidths=1.5, zorder=3)
    for place, name in enumerate(names):
        side = "center" if abs(x[place]) < 0.1 else "left" if x[place] > 0 else "right"
        ax.annotate(
            name if len(name) <= 24 else f"{name[:21]}...",
            (x[place], y[place]),
            xytext=(10 * np.sign(x[place]).round() * (abs(x[place]) >= 0.1), 12 * y[place]),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=8.5,
        )
    ax.set(xlim=(-2.1, 2.1), ylim=(-1.45, 1.35), aspect="equal")
    ax.set_axis_off()
    legend = "arrows go to who is beaten; filled: Smith set"
    ax.set_title(legend + ("; orange: cycles" if cyclic.any() else ""), fontsize=9)
