"""The figure of a report: preferences among the responses, and one order against the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

MATRICES = 3  # of the first prompts
_BLUE = "#0072B2"
_NUMBERED = 10  # responses of a matrix whose entries are written out


def draw(
    matrices: Sequence[Tensor], forward: Tensor, backward: Tensor, title: str, path: Path
) -> None:
    """Draw the first prompts' matrices by falling win rate, and P(a > b) against 1 - P(b > a).

    The matrices are P of each prompt's responses [K, K], NaN for what is not known; `forward` [Q]
    is P(a > b) by a look at a first, `backward` [Q] is P(b > a) by a look at b first.
    """
    import matplotlib as mpl  # slow to import, and needed at the end only
    from matplotlib.figure import Figure

    shown = matrices[:MATRICES]
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(1 + 2.9 * (len(shown) + 1), 3.9), layout="constrained")
        axes = figure.subplots(1, len(shown) + 1, squeeze=False)[0]
        for number, (ax, matrix) in enumerate(zip(axes, shown, strict=False), 1):
            image = _matrix(ax, matrix)
            ax.set_title(f"prompt {number}")
        axes[0].set_ylabel("response, by falling mean win rate")
        bar = figure.colorbar(image, ax=list(axes[: len(shown)]), location="bottom", shrink=0.4)
        bar.set_label("P(row > column)")
        _orders(axes[-1], forward, backward)
        figure.suptitle(title)
        figure.savefig(path, dpi=110, format="png")


def _matrix(ax: Axes, matrix: Tensor) -> AxesImage:
    order = matrix.nanmean(-1).nan_to_num(0.5).argsort(descending=True, stable=True)
    ordered = matrix[order[:, None], order]
    image = ax.imshow(ordered.numpy(), cmap="RdBu", vmin=0, vmax=1)
    names = [str(number + 1) for number in order.tolist()]
    if len(names) > _NUMBERED:
        ax.set(xticks=[], yticks=[])
        return image
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(names)), names)
    for row, column in permutations(range(len(names)), 2):
        value = float(ordered[row, column])
        text = "?" if math.isnan(value) else f"{value:.2f}"
        color = "white" if abs(value - 0.5) > 0.3 else "black"
        ax.text(column, row, text, ha="center", va="center", color=color)
    return image


def _orders(ax: Axes, forward: Tensor, backward: Tensor) -> None:
    known = ~(forward.isnan() | backward.isnan())
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    ax.axhline(0.5, color="0.85", linewidth=0.8)
    ax.axvline(0.5, color="0.85", linewidth=0.8)
    pairs = torch.stack([forward, 1 - backward], 1)[known]
    # Many pairs may lie on one point: its area says how many.
    points, counts = pairs.unique(dim=0, return_counts=True)
    x, y = points.unbind(1)
    ax.scatter(x, y, s=14 * counts.double().sqrt(), color=_BLUE, alpha=0.6, linewidths=0)
    ax.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal")
    ax.set(xlabel="P(a > b), a shown first", ylabel="1 − P(b > a), b shown first")
    ax.set_title("one order against the other")
