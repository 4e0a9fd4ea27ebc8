"""Each algorithm's own configuration against the others: one figure for its page.

    python docs/figures/curves.py

Runs `nlhf fit` on every file of configs/tabular that an algorithm's page is about, all on the same
ten games, and draws the exploitability of the regularised and of the unregularised game against
oracle queries: the mean over the games, and faintly the worst of them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nlhf_zoo.callbacks import read_history
from nlhf_zoo.cli.main import main as nlhf
from nlhf_zoo.metrics.figures.styles import MEAN_WIDTH, WORST_WIDTH, colour_of

FOLDER = Path(__file__).parent
CONFIGS = FOLDER.parent.parent / "configs" / "tabular"
NAMES = {
    "nash_mp": ("Nash-MP", "NashMP"),
    "nash_prox": ("Nash Prox", "NashProx"),
    "egpo": ("EGPO", "EGPO"),
    "online_ipo": ("online IPO", "OnlineIPO"),
    "inpo": ("INPO", "INPO"),
    "mnpo": ("MNPO against two", "MNPO"),
    "pairwise_grpo": ("pairwise GRPO", "PairwiseGRPO"),
    "ipomd": ("IPO-MD", "IPOMD"),
    "rspo": ("RSPO", "RSPO"),
    "optimistic_mirror_descent": ("optimistic mirror descent", "OptimisticMirrorDescent"),
    "nash_md": ("Nash-MD", "NashMD"),
    "nash_ema": ("Nash-EMA", "NashEMA"),
    "sppo": ("SPPO", "SPPO"),
    "dno": ("DNO", "DNO"),
    "rebel": ("REBEL", "REBEL"),
    "moving_magnet": ("moving magnet around EGPO", "MovingMagnet"),
    "online_dpo": ("online DPO", "OnlineDPO"),
    "xpo": ("XPO", "XPO"),
}
ALONE = {
    "rebel"
}  # on games of its own, for it needs scores: neither among the others nor with them
PANELS = {
    "exploitability": "exploitability, β = 0.1",
    "exploitability_unregularised": "exploitability, β = 0",
}
FLOOR = 1e-16  # what is below is rounding


def run(name: str, folder: str) -> dict[str, Any]:
    """The history of `nlhf fit` on an algorithm's file."""
    logs = ["--trainer.logger.save_dir", folder, "--trainer.logger.version", "0"]
    nlhf(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *logs])
    return read_history(Path(folder) / "tabular" / name / "version_0")


def line(ax: Axes, history: dict[str, Any], metric: str, colour: str | None, label: str) -> None:
    """The mean of one algorithm: in its colour, with the worst, on its own page, else grey."""
    queries, values = history["queries"], history[metric]
    rows = np.unique(np.geomspace(1, len(queries), 400).astype(int)) - 1
    shown, order = colour or "0.7", 1 if colour is None else 3
    style: dict[str, Any] = {"color": shown, "zorder": order}
    ax.plot(queries[rows], values.mean(1)[rows], linewidth=MEAN_WIDTH, label=label, **style)
    if colour is not None:
        ax.plot(queries[rows], values.max(1)[rows], linewidth=WORST_WIDTH, alpha=0.5, **style)


def draw(own: str, histories: dict[str, dict[str, Any]]) -> None:
    """The figure of one page."""
    figure = Figure(figsize=(10, 3.7), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, (metric, title) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for name, history in histories.items():
            if name != own and ALONE & {name, own}:
                continue
            label, kind = NAMES[own] if name == own else ("the other algorithms", None)
            line(ax, history, metric, kind and colour_of(kind), label)
        ax.set_xscale("symlog", linthresh=1)
        ax.set_yscale("log")
        ax.set_ylim(bottom=FLOOR if metric == "exploitability" else 1e-4, top=1)
        ax.set_xlim(left=0)
        ax.set_xlabel("oracle queries per prompt")
        ax.set_ylabel(title)
        ax.grid(alpha=0.25)
    handles, labels = ax.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(FOLDER / f"{own}.png", dpi=100)


def main() -> None:
    """Run, draw, and print where each algorithm ends."""
    with tempfile.TemporaryDirectory() as folder:
        histories = {name: run(name, folder) for name in NAMES}
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        for name in NAMES:
            draw(name, histories)
    for name, history in histories.items():
        queries, figures = history["queries"], []
        for metric in PANELS:
            figures += [
                f"{metric} {history[metric][-1].mean():.2e} (worst {history[metric][-1].max():.2e})"
            ]
        small = history["exploitability"].max(1) < 1e-6
        first = f"all games below 1e-6 after {queries[small.argmax()]:.0f}" if small.any() else ""
        print(f"{NAMES[name][0]}: {queries[-1]:.0f} queries, {', '.join(figures)} {first}")


if __name__ == "__main__":
    main()
