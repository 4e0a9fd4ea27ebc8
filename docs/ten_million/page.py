"""What is shown of the demonstration: a table, and a figure of the certificates and the wins."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from make import PLACE
from matplotlib.axes import Axes

from nlhf_zoo.files import written
from nlhf_zoo.metrics.figures.canvas import DPI, new_figure
from nlhf_zoo.metrics.figures.styles import colour_of
from nlhf_zoo.metrics.figures.tournaments import draw_win_matrix

FIGURE = PLACE / "ten_million.png"
CLASSES = {"Nash-MP": "NashMP", "Nash-MD": "NashMD", "SPPO": "SPPO", "EGPO": "EGPO"}
CLASSES |= {"online DPO": "OnlineDPO", "online IPO": "OnlineIPO"}

Row = dict[str, Any]


def certificates(titles: Mapping[str, str]) -> dict[str, Row]:
    """What `nlhf certify` wrote of each, by title."""
    folder = PLACE / "certificates"
    return {
        title: json.loads((folder / name / "certificate.json").read_text(encoding="utf-8"))
        for name, title in titles.items()
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def paired(before: Row, after: Row) -> tuple[float, float]:
    """How much lower the exploitability is than before on the same prompts: mean, and its error.

    The error of both estimates of each prompt; the prompts themselves are held fixed.
    """
    pairs = list(zip(before["each"], after["each"], strict=True))
    mean = float(np.mean([one["value"] - other["value"] for one, other in pairs]))
    total = sum(one["variance"] + other["variance"] for one, other in pairs)
    return mean, float(total**0.5) / len(pairs)


def won(name: str, entrant: str) -> str:
    """The win rate of an entrant of a tournament, with its interval."""
    rows = rows_of(PLACE / name / "results.csv")
    row = next(row for row in rows if row["entrant"] == entrant)
    rate, low, high = (float(row[f"win_rate{end}"]) for end in ("", "_low", "_high"))
    return f"{rate:.3f} ({low:.3f} to {high:.3f})"


def table(found: Mapping[str, Row], standings: list[dict[str, str]]) -> str:
    """Certificates and standings in Markdown, the least exploitable first."""
    untrained = next(iter(found.values()))
    averages = {row["entrant"]: float(row["nash_average"]) for row in standings}
    lines = [
        "| policy | exploitability (95 %) | lower by | KL | ESS | wins, held-out oracle (95 %) "
        "| Nash average | wins, hidden rule (95 %) |",
        f"|---|{'---:|' * 7}",
    ]
    for title, row in sorted(found.items(), key=lambda item: item[1]["mean"]):
        mean, error = paired(untrained, row)
        known = "" if row["known"] else " (cannot know)"
        lower = "" if row is untrained else f"{mean:+.4f} ± {1.96 * error:.4f}"
        lines.append(
            f"| {title} | {row['mean']:.4f}{known} ({row['low_of_law']:.4f} to "
            f"{row['high_of_law']:.4f}) | {lower} | {row['kl']:.2f} | {row['ess']:.0f} "
            f"| {won('tournament', title)} | {averages[title]:.2f} "
            f"| {won('tournament_rule', title)} |"
        )
    return "\n".join(lines)


def draw_certificates(ax: Axes, found: Mapping[str, Row]) -> None:
    """Exploitability of each with its interval, the least on top."""
    untrained = next(iter(found.values()))
    order = sorted(found, key=lambda title: -found[title]["mean"])
    for place, title in enumerate(order):
        row = found[title]
        ends = [[row["mean"] - row["low_of_law"]], [row["high_of_law"] - row["mean"]]]
        colour = colour_of(CLASSES[title]) if title in CLASSES else "black"
        marker = "o" if row["known"] else "x"
        ax.errorbar(row["mean"], place, xerr=ends, fmt=marker, color=colour, capsize=3)
    ax.axvline(untrained["mean"], color="black", linewidth=1, linestyle=":")
    ax.set_yticks(range(len(order)), order)
    ax.set(
        xlabel=f"exploitability at β = {untrained['beta']:g}, 95 % interval\n(dotted: untrained)"
    )
    ax.set_xscale("log")
    ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.grid(axis="x", alpha=0.25)
    ax.set_title(f"Certificate, training oracle\n{len(untrained['each'])} held-out prompts")


def draw(found: Mapping[str, Row], standings: list[dict[str, str]], path: Path) -> None:
    """Certificates to the left, who beats whom to the right."""
    names = [row["entrant"] for row in standings]
    at = {name: place for place, name in enumerate(names)}
    rates, low, high = (np.full((len(names), len(names)), np.nan) for _ in range(3))
    pairs = rows_of(PLACE / "tournament/pairs.csv")
    for row in pairs:
        i, j = at[row["first"]], at[row["second"]]
        rates[i, j], low[i, j], high[i, j] = (
            float(row[key]) for key in ("win_rate", "bootstrap_low", "bootstrap_high")
        )
        rates[j, i], low[j, i], high[j, i] = 1 - rates[i, j], 1 - high[i, j], 1 - low[i, j]
    with new_figure(11.5, 4.6) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        draw_certificates(left, found)
        draw_win_matrix(right, names, rates, (low, high), "win rate of row over column")
        right.set_title(f"Tournament, held-out oracle\n{pairs[0]['judged']} held-out prompts")
        with written(path) as beside:
            figure.savefig(beside, dpi=1.2 * DPI, format="png")


def write(titles: Mapping[str, str]) -> None:
    """Print the table, and draw the figure into the folder of the demonstration."""
    found, standings = certificates(titles), rows_of(PLACE / "tournament/results.csv")
    print(table(found, standings))
    draw(found, standings, FIGURE)
    print(f"\nFigure: {FIGURE}")
