"""The engine of ``nlhf bench``: many methods in one batch against one after the other.

    python -m benchmarks.bench [--repeats 5] [--intervals FIRST]

Three ratios, each of two things that are measured in turn, in CPU seconds on one thread: updates of
all closed forms at two temperatures in one batch, against one after the other, each over all games
of the batch; an update of a closed form at 1,000 actions, against the products P o that it asks
for; and the exact part of the benchmark for one seed, against as many ``nlhf fit`` commands, of
which a few are measured. Figures are medians of the turns' ratios; of products they are ratios of
the least of all turns, for what else a machine does takes bandwidth of the memory, and only adds.

With ``--intervals`` it measures instead how often the intervals of the exact part hold: of six sets
of five seeds, from FIRST on, how often those of one hold the means of another.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor

from nlhf_zoo.algorithms.batched_rounds import BatchedRounds, Row, can_be_batched
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.algorithms.products import products_of_a_round
from nlhf_zoo.cli.bench import exact
from nlhf_zoo.cli.bench.games import BETAS, GAMES
from nlhf_zoo.cli.bench.methods import Method, ours
from nlhf_zoo.cli.bench.results import EXPLOITABILITY, HELD_OUT, summaries
from nlhf_zoo.data.tables import games

CONFIGS = Path(__file__).parent.parent / "configs" / "tabular"


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    before = time.process_time()
    work()
    return time.process_time() - before


def alone(row: Row, table: Tensor, log_mu: Tensor) -> ClosedFormRounds:
    """A row by itself."""
    players = dict.fromkeys(("policy", *row.algorithm.players), log_mu)
    return ClosedFormRounds(row.algorithm, row.beta, table, log_mu, players)


def batched(methods: list[Method], num: int, actions: int, rounds: int, repeats: int) -> None:
    """Print how much faster a batch is than one after the other."""
    table = games.uniform_random(num, actions, seed=0)
    log_mu = torch.randn(num, actions, dtype=torch.float64).log_softmax(-1)
    rows = [Row(m.algorithm, b) for m in methods if can_be_batched(m.algorithm) for b in BETAS]
    together = BatchedRounds(rows, table, log_mu)
    each = [alone(row, table, log_mu) for row in rows]

    def one_by_one() -> None:
        for engine in each:
            engine.run(rounds, rounds)

    together.play(3)
    one_by_one()
    turns = [(seconds(lambda: together.play(rounds)), seconds(one_by_one)) for _ in range(repeats)]
    ratio = statistics.median(slow / fast for fast, slow in turns)
    shown = (
        f"{1e6 * statistics.median(column) / rounds:9.1f}" for column in zip(*turns, strict=True)
    )
    print(f"| {num} x {actions} | {len(rows)} | {' | '.join(shown)} | {ratio:.2f} |", flush=True)


def products(methods: list[Method], repeats: int, rounds: int = 200) -> None:
    """Print an update's cost at 1,000 actions over that of its products."""
    table = games.uniform_random(1, 1000, seed=0)
    log_mu = torch.randn(1, 1000, dtype=torch.float64).log_softmax(-1)
    policy = log_mu.exp()[:, None]

    def ask(number: int) -> None:
        for _ in range(number * rounds):
            torch.bmm(policy, table)

    for method in methods:
        engine = alone(Row(method.algorithm, BETAS[0]), table, log_mu)
        asked = products_of_a_round(method.algorithm)
        engine.run(0, rounds)
        turns = [
            (seconds(lambda: engine.run(rounds, rounds)), seconds(lambda: ask(asked)))  # noqa: B023
            for _ in range(2 * repeats)
        ]
        ours_least, theirs_least = map(min, zip(*turns, strict=True))
        print(f"| {method.name} | {asked} | {ours_least / theirs_least:.2f} |", flush=True)


def of_command(*args: str) -> float:
    """CPU seconds of a command, its start among them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "nlhf_zoo", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(methods: list[Method], repeats: int) -> None:
    """Print the exact part's cost over that of the same runs as commands."""
    number = len(methods) * len(GAMES) * len(BETAS)
    with tempfile.TemporaryDirectory() as folder:
        turns = []
        for turn in range(repeats):
            whole = of_command("bench", "--seeds", "[0]", "--output", f"{folder}/{turn}")
            fit = ["fit", "--config", str(CONFIGS / "egpo.yaml")]
            fit += [
                "--model.oracle.init_args.num_games",
                "1",
                "--trainer.enable_progress_bar",
                "false",
            ]
            fit += ["--trainer.callbacks+=Budget", "--trainer.callbacks.queries=200"]
            one = of_command(*fit, "--trainer.logger.init_args.save_dir", folder)
            turns.append((whole, one))
    whole, one = (statistics.median(column) for column in zip(*turns, strict=True))
    print(f"exact part {whole:.1f} s; {number} commands of {one:.1f} s: {number * one:.0f} s;")
    print(f"of theirs {statistics.median(a / (number * b) for a, b in turns):.4f}")


def intervals(methods: list[Method], first: int, sets: int = 6, seeds: int = 5) -> None:
    """Print how often the interval of a set of seeds holds the mean of another, by measure."""
    every = [*range(first, first + sets * seeds)]
    played = exact.play(methods, every, 200)
    conditions = [f"β = {beta:g}" for beta in BETAS]
    found = []
    for start in range(first, first + sets * seeds, seeds):
        own = [f for one in played for f in one.figures if start <= f.seed < start + seeds]
        found.append(summaries(own, conditions, geometric=True))
    for measure in (EXPLOITABILITY, HELD_OUT):
        held = [
            one[m.name][condition][measure].low
            <= other[m.name][condition][measure].mean
            <= one[m.name][condition][measure].high
            for one, other in permutations(found, 2)
            for m in methods
            for condition in conditions
        ]
        pairs = len(methods) * len(conditions)
        print(
            f"{measure}, seeds {every[0]} to {every[-1]}: held {sum(held)} of {len(held)}; "
            f"the first set's of the second {sum(held[:pairs])} of {pairs}; least of two sets "
            f"{min(sum(held[i : i + pairs]) for i in range(0, len(held), pairs))} of {pairs}"
        )


def main() -> None:
    """Print all ratios, or how often intervals hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--intervals", type=int, metavar="FIRST")
    given = parser.parse_args()
    repeats = given.repeats
    torch.set_num_threads(1)
    methods = [method for method in ours() if method.algorithm.closed_form]
    if given.intervals is not None:
        intervals(methods, given.intervals)
        return
    print("| games x actions | rows | batch, us a round | one after the other | ratio |")
    print("|---|---:|---:|---:|---:|")
    for num, actions, rounds in (
        (4, 3, 500),
        (8, 10, 500),
        (4, 31, 300),
        (4, 100, 100),
        (1, 1000, 5),
    ):
        batched(methods, num, actions, rounds, repeats)
    print("\n| 1,000 actions | products a round | update over its products |\n|---|---:|---:|")
    products(methods, repeats)
    print()
    commands(methods, min(repeats, 3))


if __name__ == "__main__":
    main()
