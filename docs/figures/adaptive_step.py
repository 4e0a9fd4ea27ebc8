"""What the adaptive step does: the duality gap against products, and the step that each game finds.

python docs/figures/adaptive_step.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from nlhf_zoo.algorithms import EGPO
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.data.tables.games import cyclic, uniform_random
from nlhf_zoo.solvers import exploitability

FOLDER = Path(__file__).parent
BETA, PRODUCTS = 0.01, 500
GAMES = {"a random game of 100 actions": uniform_random(1, 100, seed=0)}
GAMES["rock, paper, scissors"] = cyclic(3, 1.0)
STEPS = {"default step": (None, "C0"), "a step of 4": (4.0, "C7"), "adaptive": ("adaptive", "C3")}


def play(table: Tensor, eta: float | str | None) -> tuple[Tensor, Tensor, list[float]]:
    """Products [R], the duality gap after them [R], and the step size of each round."""
    rng = torch.Generator().manual_seed(1)
    log_mu = torch.randn(table.shape[:2], generator=rng, dtype=torch.float64).log_softmax(-1)
    algorithm = EGPO(eta)  # type: ignore[arg-type]  # "adaptive" is a text here
    players = dict.fromkeys(("policy", *algorithm.players), log_mu)
    rounds = ClosedFormRounds(algorithm, BETA, table, log_mu, players)
    asked, gaps, sizes = [0], [2 * exploitability(table, log_mu, log_mu, BETA).item()], []
    while asked[-1] < PRODUCTS:
        sizes.append(float("nan") if rounds.step_size is None else rounds.step_size.item())
        played = rounds.run(len(sizes) - 1, 1)
        asked.append(asked[-1] + int(played.most_queries))
        gap = 2 * exploitability(table, played.log_policy[0], log_mu, BETA).item()
        gaps.append(max(gap, 1e-16))  # what is below is rounding
    return torch.tensor(asked), torch.tensor(gaps), sizes


def main() -> None:
    """Draw and save."""
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 3)
        for ax, (title, table), dashes in zip(axes, GAMES.items(), ("-", "--"), strict=False):
            for label, (eta, colour) in STEPS.items():
                asked, gaps, sizes = play(table, eta)
                ax.semilogy(asked, gaps, color=colour, label=label, linewidth=1.5)
                if eta == "adaptive":
                    axes[2].plot(asked[:-1], sizes, color=colour, linestyle=dashes, label=title)
            ax.axhline(1e-5, color="0.7", linewidth=0.8)
            ax.set(title=title, ylim=(1e-14, 1), xlim=(0, PRODUCTS), xlabel="products P π")
            ax.grid(alpha=0.25)
        axes[0].set_ylabel(f"duality gap, β = {BETA:g}")
        axes[0].legend(frameon=False)
        axes[2].axhline(2 / (1 + 2 * BETA), color="C0", linewidth=1.0, label="default step")
        axes[2].set(title="step size s, adaptive", xlim=(0, 200), ylim=(0, 30))
        axes[2].set_xlabel("products P π")
        axes[2].grid(alpha=0.25)
        axes[2].legend(frameon=False)
        figure.savefig(FOLDER / "adaptive_step.png", dpi=110)


if __name__ == "__main__":
    main()
