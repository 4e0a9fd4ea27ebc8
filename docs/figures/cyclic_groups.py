"""From pairs of three groups of words to policies: who learns the cycle, and where policies go.

    python docs/figures/cyclic_groups.py

Runs `nlhf fit` on the files of configs/preference_model, and draws the held-out accuracy of three
kinds of preference model while they train, and each group's share of the responses of two policies:
of Nash-MP against the general preference model, of online DPO against the Bradley-Terry model.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nlhf_zoo.cli.main import main as nlhf
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.metrics.figures.games import draw_triangle, place
from nlhf_zoo.metrics.figures.styles import colour_of
from nlhf_zoo.records import Prompts, Responses

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
CONFIGS = "configs/preference_model"
PROMPTS = ROOT / "configs/data/cyclic_groups/prompts.jsonl"
GROUP = [0, 0, 0, 0, 0, 1, 1, 2]  # of the letters a to h: rock, paper, scissors
NAMES = ("rock", "paper", "scissors")
# Colours are the algorithms'; preference models are told apart by their dashes.
MODELS = {
    "general": ("general preference model", "-"),
    "pair": ("cross-encoder", "--"),
    "reward": ("Bradley-Terry", "-."),
}
POLICIES = {
    "nash_mp": ("general", "Nash-MP against the general preference model", colour_of("NashMP")),
    "online_dpo": ("reward", "online DPO against Bradley-Terry", colour_of("OnlineDPO")),
}


class GroupShares(L.Callback):
    """Write the share of each group of responses after each round, exactly: [rounds, prompts, 3].

    Args:
        path: the file of JSON to write.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.shares: list[Any] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The reference's, where the policy starts."""
        self._look(pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Look between rounds."""
        assert isinstance(pl_module, OnlineGame)
        if pl_module.between_rounds:
            self._look(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write all."""
        Path(self.path).write_text(json.dumps(self.shares))

    @torch.no_grad()
    def _look(self, game: L.LightningModule) -> None:
        """The law of the first letter tells the group."""
        assert isinstance(game, OnlineGame)
        texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]
        prompts = game.policy.encode(Prompts(torch.arange(len(texts)), text=texts))
        tokens = torch.arange(len(GROUP)).expand(len(texts), -1)[:, :, None]
        weight = torch.full(tokens.shape[:2], 1 / len(GROUP))
        letters = Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight)
        chance = game.policy.log_prob({"policy": 1.0}, prompts, letters).exp()
        group = torch.tensor(GROUP)
        self.shares.append([[float(row[group == g].sum()) for g in range(3)] for row in chance])


def train_model(name: str, folder: str) -> dict[str, list[tuple[int, float]]]:
    """The figures of `nlhf fit` on a preference model's file, looked at every five steps."""
    logs = ["--trainer.logger.save_dir", folder, "--trainer.val_check_interval", "5"]
    nlhf(["fit", "--config", f"{CONFIGS}/{name}.yaml", *logs])
    events = EventAccumulator(str(Path(folder) / "preference_model" / name / "version_0"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("val/")]
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags}


def train_policy(name: str, folder: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Shares along a run of `nlhf fit`: [rounds, prompts, 3]."""
    model = Path(folder) / "preference_model" / POLICIES[name][0] / "version_0/preference_model"
    path = Path(folder) / f"{name}.json"
    callback = {"class_path": "cyclic_groups.GroupShares", "init_args": {"path": str(path)}}
    args = ["--trainer.logger.save_dir", folder, "--model.oracle.model", str(model)]
    nlhf(
        [
            "fit",
            "--config",
            f"{CONFIGS}/{name}.yaml",
            *args,
            "--trainer.callbacks+",
            json.dumps(callback),
        ]
    )
    return np.array(json.loads(path.read_text()))


def draw_accuracy(ax: Axes, figures: dict[str, dict[str, list[tuple[int, float]]]]) -> None:
    """Held-out accuracy against steps."""
    for name, (label, dashes) in MODELS.items():
        steps, values = zip(*figures[name]["val/accuracy"], strict=True)
        ax.plot(np.array(steps) + 1, values, color="0.3", linestyle=dashes, label=label)
    ax.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    ax.set_xlim(left=0)
    ax.set_ylim(0.4, 1.02)
    ax.set_xlabel("training steps of 64 pairs")
    ax.set_ylabel("accuracy on held-out pairs")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, loc="lower right")


def draw_paths(ax: Axes, paths: dict[str, Any]) -> None:
    """Both policies in the simplex, mean over the prompts."""
    draw_triangle(ax, NAMES)
    for name, (_, label, colour) in POLICIES.items():
        mean = paths[name].mean(1)
        x, y = place(mean)
        ax.plot(x, y, color=colour, linewidth=0.9, marker=".", markersize=3, label=label)
        ax.scatter(x[-1], y[-1], color=colour, s=60, zorder=4)
        if name == "nash_mp":
            start = place(mean[0])
    ax.scatter(*start, color="black", marker="s", s=45, zorder=3, label="reference, the start")
    third = place(np.full(3, 1 / 3))
    ax.scatter(*third, color="black", marker="x", s=45, zorder=5, label="a third each")
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.04))


def main() -> None:
    """Run, draw, and print where each run ends."""
    os.chdir(ROOT)
    sys.path.append(str(FOLDER))  # where the callback's class is found by its name
    with tempfile.TemporaryDirectory() as folder:
        figures = {name: train_model(name, folder) for name in MODELS}
        paths = {name: train_policy(name, folder) for name in POLICIES}
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4.3), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        draw_accuracy(left, figures)
        draw_paths(right, paths)
        figure.savefig(FOLDER / "cyclic_groups.png", dpi=100)
    for name, tags in figures.items():
        last = " ".join(
            f"{tag.removeprefix('val/')} {values[-1][1]:.4f}" for tag, values in tags.items()
        )
        print(f"{name}: {last}")
    for name, shares in paths.items():
        for when, row in (("start", 0), ("end", -1)):
            mean, least, most = (f(shares[row], 0) for f in (np.mean, np.min, np.max))
            told = ", ".join(
                f"{group} {mean[g]:.3f} ({least[g]:.2f} to {most[g]:.2f})"
                for g, group in enumerate(NAMES)
            )
            print(f"{name}, {when}: {told}")


if __name__ == "__main__":
    main()
