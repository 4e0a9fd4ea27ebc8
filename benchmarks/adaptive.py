"""Products until the duality gap is below 1e-5: the adaptive step beside the default one.

    python -m benchmarks.adaptive [--gap 1e-5] [--betas 1 0.1 0.01 0.001]

Fifty seeded games: twenty random ones, ten of rock, paper, scissors, ten of cyclic blocks and ten
of annotators, each kind but rock, paper, scissors with 10 and with 100 actions, from references
with standard normal logits. Both are EGPO in closed form, and both count all products P o that
they ask for; the adaptive step its first one, and those of rounds that it rejects. Nothing is
timed.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from nlhf_zoo.algorithms import EGPO
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.data.tables import games
from nlhf_zoo.solvers import exploitability

_CHUNK, _MOST = 500, 100_000  # rounds


def families() -> dict[str, Tensor]:
    """P(y > y') of fifty games [C, N, N] by family."""
    crowd = {"num_annotators": 101, "cycle": 5}
    return {
        "random, 10 actions": games.uniform_random(10, 10, seed=10),
        "random, 100 actions": games.uniform_random(10, 100, seed=100),
        "rock, paper, scissors": torch.cat(
            [games.cyclic(3, strength) for strength in (0.6, 0.7, 0.8, 0.9, 1.0) for _ in "ab"]
        ),
        "cyclic blocks, 10 actions": games.cyclic_blocks(10).repeat(5, 1, 1),
        "cyclic blocks, 100 actions": games.cyclic_blocks(100).repeat(5, 1, 1),
        "annotators, 10 actions": torch.cat(
            [games.annotators(10, **crowd, seed=seed) for seed in range(5)]
        ),
        "annotators, 100 actions": torch.cat(
            [games.annotators(100, **crowd, seed=seed) for seed in range(5)]
        ),
    }


def references(table: Tensor, seed: int) -> Tensor:
    """Log mu [C, N] with standard normal logits."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(table.shape[:2], generator=rng, dtype=torch.float64).log_softmax(-1)


def products_to(algorithm: EGPO, table: Tensor, log_mu: Tensor, beta: float, gap: float) -> Tensor:
    """Products until each game's duality gap is below ``gap`` [C]; inf where it never is."""
    players = dict.fromkeys(("policy", *algorithm.players), log_mu)
    rounds = ClosedFormRounds(algorithm, beta, table, log_mu, players)
    start = 2 * exploitability(table, log_mu, log_mu, beta) < gap
    reached = torch.where(start, 0.0, math.inf).double()
    asked = torch.zeros(len(table), dtype=torch.long)
    for done in range(0, _MOST, _CHUNK):
        played = rounds.run(done, _CHUNK)
        queries = played.queries.reshape(_CHUNK, -1) + asked
        below = 2 * exploitability(table, played.log_policy, log_mu, beta) < gap
        found = torch.where(below, queries.double(), math.inf).amin(0)
        reached = torch.minimum(reached, found)
        asked = queries[-1]
        if reached.isfinite().all():
            break
    return reached


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gap", type=float, default=1e-5)
    parser.add_argument("--betas", type=float, nargs="+", default=[1, 0.1, 0.01, 0.001])
    arguments = parser.parse_args()
    print("| β | games | default, median | adaptive, median | of the default's | worst ratio |")
    print("|---|---|---|---|---|---|")
    for beta in arguments.betas:
        both: list[tuple[Tensor, Tensor]] = []
        for seed, (name, table) in enumerate(families().items()):
            log_mu = references(table, seed)
            default, adaptive = (
                products_to(EGPO(eta), table, log_mu, beta, arguments.gap)
                for eta in (None, "adaptive")
            )
            both.append((default, adaptive))
            _print(beta, name, default, adaptive)
        _print(beta, "all 50", *(torch.cat(column) for column in zip(*both, strict=True)))


def _print(beta: float, name: str, default: Tensor, adaptive: Tensor) -> None:
    medians = default.quantile(0.5).item(), adaptive.quantile(0.5).item()
    worst = (adaptive / default).max().item()
    print(
        f"| {beta:g} | {name} | {medians[0]:g} | {medians[1]:g} | {medians[1] / medians[0]:.2f} "
        f"| {worst:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
