"""Figures of a game: convergence, the path of a policy on the simplex, tables of preferences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.metrics.figures.canvas import plain
from nlhf_zoo.metrics.figures.styles import MEAN_WIDTH, PREFERENCES, WORST_WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

FLOOR = 1e-16  # what is below is rounding, and would squeeze the rest
THEORY = r"theory's rate $(1+2\beta)^{-N/2}$"
_POINTS = 1500  # of a line
_LABELLED = 8  # rows of a table up to which its entries are written into it
_HEIGHT = math.sqrt(3) / 2  # of an equilateral triangle


def theory_rate(start: float, beta: float, queries: Array) -> Array:
    r"""The exploitability that theory promises, :math:`e_0 (1 + 2\beta)^{-N / 2}`, [Q].

    Args:
        start: exploitability :math:`e_0` at the start.
        beta: temperature of the game.
        queries: numbers of exact queries N [Q].

    Source: the proximal point method in KL geometry, at two queries a round (Nash-MP).
    """
    return np.asarray(start * (1 + 2 * beta) ** (-queries / 2), dtype=np.float64)


def draw_theory(ax: Axes, start: float, beta: float, queries: Array) -> None:
    """The line of `theory_rate`, as far as it is no rounding."""
    rate = theory_rate(start, beta, queries)
    shown = rate >= FLOOR
    ax.plot(queries[shown], rate[shown], color="0.35", ls="--", linewidth=1.2, label=THEORY)


def draw_convergence(
    ax: Axes,
    queries: Array,
    values: Array,
    beta: float,
    colour: str,
    theory: bool,
    payoff_range: float = 1.0,
) -> None:
    """Exploitability of the regularised game against queries, beside what theory promises.

    Args:
        ax: what is drawn into.
        queries: for each prompt [R].
        values: exploitability [R, C] of C prompts.
        beta: temperature of the game.
        colour: of the algorithm.
        theory: whether queries are exact products, as theory counts them.
        payoff_range: twice the largest distance of a payoff from 1/2, on which the rate depends.
    """
    rows = np.unique(np.linspace(0, len(queries) - 1, _POINTS).astype(int))
    shown, mean, worst = queries[rows], values.mean(1)[rows], values.max(1)[rows]
    several = values.shape[1] > 1
    ax.plot(shown, mean, color=colour, linewidth=MEAN_WIDTH, label="mean" if several else "policy")
    if several:
        ax.plot(shown, worst, color=colour, linewidth=WORST_WIDTH, alpha=0.6, label="worst prompt")
    if theory:
        draw_theory(ax, float(mean[0]), beta / payoff_range, np.linspace(0, shown[-1], _POINTS))
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set(xlim=(0, max(float(shown[-1]), 1)), ylim=(max(low, FLOOR), high))
    ax.set(xlabel="oracle queries per prompt", ylabel=f"exploitability, β = {beta:g}")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)


def place(probability: Array) -> tuple[Array, Array]:
    """Where policies of three actions [..., 3] lie in an equilateral triangle: x and y [...]."""
    _, second, third = np.moveaxis(probability, -1, 0)
    return second + third / 2, third * _HEIGHT


def draw_triangle(ax: Axes, names: Sequence[str]) -> None:
    """The triangle that `place` puts policies into, with the three actions' names."""
    ax.plot([0, 1, 0.5, 0], [0, 0, _HEIGHT, 0], color="0.6", linewidth=0.8)
    corners = ((-0.02, -0.03, "right"), (1.02, -0.03, "left"), (0.5, 0.89, "center"))
    for name, (x, y, side) in zip(names, corners, strict=True):
        ax.text(x, y, plain(name), color="0.3", ha=side)
    ax.set_aspect("equal")
    ax.set_axis_off()


def draw_simplex(
    ax: Axes,
    path: Array,
    marks: Mapping[str, tuple[Array, str]],
    colour: str,
    names: Sequence[str] = ("a", "b", "c"),
) -> None:
    """The path of a policy of three actions.

    Args:
        ax: what is drawn into.
        path: probabilities, one row a round [R, 3].
        marks: points that are marked, by their name in the legend: probabilities [3] and a marker.
        colour: of the algorithm.
        names: of the actions, at the corners.
    """
    draw_triangle(ax, names)
    ax.plot(*place(path), color=colour, linewidth=0.9, marker=".", markersize=3)
    for label, (point, marker) in marks.items():
        ax.scatter(*place(point), color="black", marker=marker, s=45, zorder=3, label=label)


def draw_preferences(
    ax: Axes, table: Array, names: Sequence[str], label: str, bound: float = 0.5
) -> None:
    """A table of preferences, or of win rates, in colours, and of few rows in numbers too.

    Args:
        ax: what is drawn into.
        table: [N, N]; entry (i, j) is how often i is preferred to j. NaN stays empty.
        names: of rows and columns.
        label: what an entry is, for the scale.
        bound: the largest distance of an entry from 1/2.
    """
    shown = ax.imshow(table, cmap=PREFERENCES, vmin=0.5 - bound, vmax=0.5 + bound)
    ticks, shown_names = range(len(names)), [*map(plain, names)]
    ax.set_xticks(ticks, shown_names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(ticks, shown_names)
    ax.spines[:].set_visible(False)
    if len(names) <= _LABELLED:
        for i, j in np.ndindex(*table.shape):
            if not np.isnan(table[i, j]):
                shade = "white" if abs(table[i, j] - 0.5) > 0.7 * bound else "black"
                ax.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", color=shade, size=8)
    ax.figure.colorbar(shown, ax=ax, label=label)
