"""Figures of a tournament: ratings with their intervals, and the win matrix with its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.metrics.figures.styles import BLUE, PREFERENCES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

_WRITTEN = 20  # entrants up to which win rates are written into the matrix
_DARK = 0.3  # from 1/2 on: there white letters are read better than black ones


def draw_ratings(
    ax: Axes, names: Sequence[str], ratings: Array, interval: tuple[Array, Array], label: str
) -> None:
    """Ratings, the best on top, with intervals; an end at infinity is an arrow at the edge.

    Args:
        ax: what is drawn into.
        names: of the entrants, the best first.
        ratings: [N].
        interval: both ends [N].
        label: what a rating is, with its unit.
    """
    rows = np.arange(len(names))[::-1]
    finite = np.concatenate([ratings, *(end[np.isfinite(end)] for end in interval)])
    low, high = float(finite.min()), float(finite.max())
    pad = 0.08 * max(high - low, 1e-3)
    edges = (low - pad, high + pad)
    for end, edge, marker in ((interval[0], edges[0], "<"), (interval[1], edges[1], ">")):
        shown = np.where(np.isfinite(end), end, edge)
        ax.hlines(rows, np.minimum(ratings, shown), np.maximum(ratings, shown), color=BLUE)
        far, near = ~np.isfinite(end), np.isfinite(end)
        ax.scatter(shown[far], rows[far], marker=marker, color=BLUE, s=30)
        ax.scatter(shown[near], rows[near], marker="|", color=BLUE, s=50)
    ax.scatter(ratings, rows, color=BLUE, s=30, zorder=3)
    ax.set_yticks(rows, names)
    ax.set(xlabel=label, ylim=(-0.6, len(names) - 0.4))
    ax.grid(axis="x", alpha=0.25)


def draw_win_matrix(
    ax: Axes, names: Sequence[str], rates: Array, interval: tuple[Array, Array], label: str
) -> None:
    """Win rates of rows against columns, each with its interval below.

    Args:
        ax: what is drawn into.
        names: of the entrants, the best first.
        rates: [N, N], NaN where nothing is known.
        interval: both ends [N, N].
        label: what an entry is, for the scale.
    """
    shown = ax.imshow(rates, cmap=PREFERENCES, vmin=0, vmax=1)
    ticks = range(len(names))
    ax.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(ticks, names)
    ax.spines[:].set_visible(False)
    if len(names) <= _WRITTEN:
        for i, j in np.ndindex(*rates.shape):
            if not np.isnan(rates[i, j]):
                colour = "white" if abs(rates[i, j] - 0.5) > _DARK else "black"
                ends = "–".join(f"{end[i, j]:.2f}".removeprefix("0") for end in interval)
                ax.text(
                    j,
                    i - 0.02,
                    f"{rates[i, j]:.2f}",
                    va="bottom",
                    size=9,
                    ha="center",
                    color=colour,
                )
                ax.text(j, i + 0.08, ends, va="top", size=6.5, ha="center", color=colour)
    ax.figure.colorbar(shown, ax=ax, label=label, shrink=0.8)
