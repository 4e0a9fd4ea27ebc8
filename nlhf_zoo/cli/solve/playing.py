"""``nlhf solve --algorithm``: an algorithm in closed form, with its whole trajectory."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.data.tables.files import require_memory
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import starts_as
from nlhf_zoo.solvers import Solution, prepare_game

CURVES = {  # that the file holds, and their names in print
    "exploitability": "exploitability",
    "kl_to_nash": "KL to the equilibrium",
    "span": "span",
}
# Rounds are measured in chunks: at most so many rounds, numbers in their log-policies, and
# multiplications in one product of theirs (the progress bar moves between chunks).
_CHUNK_ROUNDS, _CHUNK_NUMBERS, _CHUNK_WORK = 4096, 2**20, 2**31


@dataclass(frozen=True, slots=True)
class Run:
    """What an algorithm did."""

    log_policy: Tensor  # its last iterate [C, N]
    curves: dict[str, Tensor]  # metrics by name, [updates + 1, C] each
    # Cumulative, for each prompt, int [updates + 1]; [updates + 1, C] of an adaptive algorithm.
    queries: Tensor


def rounds_of(
    algorithm: PolicyOptimizer,
    beta: float,
    payoff: Tensor,
    log_start: Tensor,
    log_reference: Tensor,
    updates: int,
    payoff_bound: float,
) -> ClosedFormRounds:
    """The rounds of an algorithm on games [C, N, N], where there is memory for its trajectory."""
    size = 8 * (len(CURVES) + algorithm.adaptive) * (updates + 1) * len(payoff)
    require_memory(size, f"a trajectory of {updates} updates")
    starts = {"policy": log_start, "reference": log_reference}
    players = {name: starts[starts_as(name)] for name in ("policy", *algorithm.players)}
    return ClosedFormRounds(
        algorithm, beta, payoff, log_reference, players, payoff_bound=payoff_bound
    )


def play(
    rounds: ClosedFormRounds, updates: int, log_start: Tensor, log_reference: Tensor, nash: Solution
) -> Run:
    """Play and measure in chunks, so that the memory does not grow with the number of updates."""
    name = type(rounds.algorithm).__name__
    prepared = prepare_game(rounds.table, log_reference, rounds.beta, nash.log_policy)
    games, num = log_start.shape
    curves = {curve: torch.empty(updates + 1, games, dtype=torch.float64) for curve in CURVES}
    adaptive = rounds.algorithm.adaptive
    queries = torch.zeros((updates + 1, games) if adaptive else updates + 1, dtype=torch.long)
    last = log_start

    def measure(first: int, log_policies: Tensor) -> None:
        metrics = prepared.measure(log_policies)
        for curve in CURVES:
            curves[curve][first : first + len(log_policies)] = metrics[curve]

    measure(0, last[None])
    size = games * num
    chunk = max(1, min(_CHUNK_ROUNDS, _CHUNK_NUMBERS // size, _CHUNK_WORK // (size * num)))
    with tqdm(total=updates, desc=name, unit="update", delay=2, file=sys.stderr) as progress:
        for done in range(0, updates, chunk):
            now = rounds.run(done, min(chunk, updates - done))
            end = done + len(now.log_policy)
            measure(done + 1, now.log_policy)
            queries[done + 1 : end + 1] = queries[done] + now.queries
            last = now.log_policy[-1]
            if curves["exploitability"][end].isnan().any():  # what is no number never becomes one
                broken = now.log_policy.log_softmax(-1).isnan().any(-1).any(-1)
                update = done + 1 + int(broken.long().argmax())
                raise UserError(f"{name} diverged at update {update}: give it a smaller step")
            progress.update(end - done)
    return Run(last.log_softmax(-1), curves, queries)
