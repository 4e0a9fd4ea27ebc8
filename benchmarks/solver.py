"""Equilibria of one large game: our solvers beside scipy's interior point and nashpy.

    python benchmarks/solver.py [--actions 1000] [--beta 0.001] [--repeats 3] [--threads 1]

Every solver takes the same uniform random game, in turn, several times over; the table shows
medians. The linear programmes solve the game without regularisation, so each answer is judged in
both games: by its exploitability in the game that it solves, and without regularisation, where the
regularised equilibrium is beta-near by construction. nashpy solves one programme for each player,
and fictitious play is the other of its methods that takes a game of this size (support enumeration
and Lemke-Howson do not).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import nashpy
import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor
from tqdm import tqdm

from nlhf_zoo.solvers import exploitability, regularised_nash, unregularised_nash


def random_game(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """A uniform random preference [N, N] and the logits of a standard normal reference [N]."""
    generator = torch.Generator().manual_seed(seed)
    upper = torch.rand(num, num, dtype=torch.float64, generator=generator).triu(1)
    P = upper + (1 - upper.mT).tril(-1) + torch.eye(num, dtype=torch.float64) / 2
    return P, torch.randn(num, dtype=torch.float64, generator=generator)


def interior_point(P: Tensor) -> Tensor:
    """Interior point of scipy: min t subject to A pi <= t, pi a distribution."""
    num = len(P)
    result = linprog(
        c=np.append(np.zeros(num), 1.0),
        A_ub=np.hstack([P.numpy() - 0.5, -np.ones((num, 1))]),
        b_ub=np.zeros(num),
        A_eq=np.append(np.ones(num), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * num + [(None, None)],
        method="highs-ipm",
    )
    return torch.from_numpy(np.maximum(result.x[:num], 0))


def nashpy_programme(P: Tensor) -> Tensor:
    """The linear programme for zero-sum games of nashpy."""
    row, _ = nashpy.Game(P.numpy() - 0.5).linear_program()
    return torch.from_numpy(np.maximum(row, 0))


def nashpy_fictitious_play(P: Tensor) -> Tensor:
    """Fictitious play of nashpy, 2,000 rounds."""
    *_, (row, _) = nashpy.Game(P.numpy() - 0.5).fictitious_play(iterations=2000)
    return torch.from_numpy(row / row.sum())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actions", type=int, default=1000)
    parser.add_argument("--beta", type=float, default=0.001)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    beta = arguments.beta
    P, log_mu = random_game(arguments.actions, seed=0)
    solvers: dict[str, Callable[[], Tensor]] = {
        f"`regularised_nash`, beta = {beta:g}": lambda: (
            regularised_nash(P, log_mu, beta).log_policy
        ),
        "`unregularised_nash` (HiGHS)": lambda: unregularised_nash(P).log_policy,
        "scipy `linprog(method='highs-ipm')`": lambda: interior_point(P).log(),
        "nashpy `linear_program`": lambda: nashpy_programme(P).log(),
        "nashpy `fictitious_play`, 2,000 rounds": lambda: nashpy_fictitious_play(P).log(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    answers: dict[str, Tensor] = {}
    with tqdm(total=arguments.repeats * len(solvers), desc="solving", leave=False) as bar:
        for _ in range(arguments.repeats):
            for name, solver in solvers.items():
                start = time.perf_counter()
                answers[name] = solver()
                seconds[name].append(time.perf_counter() - start)
                bar.update()
    size = f"{arguments.actions} actions, {arguments.threads} thread(s)"
    print(f"{size}, medians of {arguments.repeats} runs\n")
    print(f"| solver | seconds | exploitability, beta = {beta:g} | exploitability, beta = 0 |")
    print("|---|---|---|---|")
    for name, log_policy in answers.items():
        gains = (exploitability(P, log_policy, log_mu, b).item() for b in (beta, 0.0))
        columns = " | ".join(f"{gain:.1e}" for gain in gains)
        print(f"| {name} | {statistics.median(seconds[name]):.3g} | {columns} |")


if __name__ == "__main__":
    main()
