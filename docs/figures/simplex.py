"""What four algorithms do on a cycle of three: paths in the simplex, and exploitability.

python docs/figures/simplex.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from nlhf_zoo.algorithms import SPPO, NashMD, NashMP, OnlineIPO, PolicyOptimizer
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.data.tables.games import cyclic
from nlhf_zoo.metrics.figures.canvas import new_figure
from nlhf_zoo.metrics.figures.games import draw_simplex
from nlhf_zoo.metrics.figures.styles import colour_of
from nlhf_zoo.solvers import exploitability, regularised_nash

FOLDER = Path(__file__).parent
BETA, QUERIES = 0.1, 200
TABLE = cyclic(3, 0.9)  # 0 beats 1 beats 2 beats 0, nine times in ten
REFERENCE = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
ALGORITHMS: dict[str, PolicyOptimizer] = {
    "Nash-MP": NashMP(),
    "online IPO, eta = 2": OnlineIPO(eta=2.0),
    "Nash-MD, paper's schedule": NashMD(),
    "SPPO, eta = 1": SPPO(eta=1.0),
}
COLOURS = {name: colour_of(type(algorithm).__name__) for name, algorithm in ALGORITHMS.items()}


def play(algorithm: PolicyOptimizer) -> tuple[Tensor, Tensor]:
    """Log-policies from the start on [R + 1, 3], and the queries until each [R + 1]."""
    players = dict.fromkeys(("policy", *algorithm.players), REFERENCE)
    rounds = QUERIES // algorithm.queries(0, 0, enumerated=True)
    played = ClosedFormRounds(algorithm, BETA, TABLE, REFERENCE, players).run(0, rounds)
    log_policy = torch.cat([REFERENCE, played.log_policy[:, 0]]).log_softmax(-1)
    return log_policy, torch.cat([torch.zeros(1, dtype=torch.long), played.queries])


def draw(ax: Axes, log_policy: Tensor, nash: Tensor, colour: str, title: str) -> None:
    """One algorithm's path, with the reference and both equilibria."""
    marks = {
        "reference μ, the start": (REFERENCE[0].exp().numpy(), "s"),
        "equilibrium π*, β = 0.1": (nash.exp().numpy(), "*"),
        "equilibrium, β = 0": (np.full(3, 1 / 3), "x"),
    }
    draw_simplex(ax, log_policy.exp().numpy(), marks, colour)
    ax.set_title(title)


def main() -> None:
    """Draw and save."""
    nash = regularised_nash(TABLE, REFERENCE, BETA).log_policy[0]
    paths = {name: play(algorithm) for name, algorithm in ALGORITHMS.items()}
    with new_figure(11, 3.4) as figure:
        for ax, (name, (log_policy, _)) in zip(figure.subplots(1, 4), paths.items(), strict=True):
            draw(ax, log_policy, nash, COLOURS[name], name)
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(FOLDER / "simplex.png", dpi=110)
    with new_figure(6.5, 3.8) as figure:
        ax = figure.subplots()
        for name, (log_policy, queries) in paths.items():
            gap = exploitability(TABLE[0], log_policy, REFERENCE[0], BETA)
            ax.semilogy(queries, gap.clamp_min(1e-16), color=COLOURS[name], label=name)
        ax.set_ylim(1e-14, 1)
        ax.set_xlabel("oracle queries")
        ax.set_ylabel("exploitability, β = 0.1")
        ax.grid(alpha=0.25)
        ax.legend(frameon=False)
        figure.savefig(FOLDER / "exploitability.png", dpi=110)
    for name, (log_policy, _) in paths.items():
        last = " ".join(f"{p:.4f}" for p in log_policy[-1].exp())
        gap = exploitability(TABLE[0], log_policy[-1], REFERENCE[0], BETA).item()
        print(f"{name}: {last}, exploitability {gap:.1e}")
    print("equilibrium:", " ".join(f"{p:.4f}" for p in nash.exp()))


if __name__ == "__main__":
    main()
