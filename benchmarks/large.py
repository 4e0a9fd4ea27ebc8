"""Large games: 10,000 actions against two matrix-vector products; a million in 2 GiB.

python -m benchmarks.large [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from nlhf_zoo.algorithms import NashMP
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.data.tables.games import sine_game

CONFIG = Path(__file__).parent.parent / "configs" / "tabular" / "million.yaml"
_MEMORY = """
import resource, sys
from nlhf_zoo.cli import main
main(["fit", "--config", sys.argv[1], "--trainer.enable_progress_bar", "false",
      "--trainer.logger.init_args.save_dir", sys.argv[2]])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def ten_thousand(repeats: int, rounds: int = 10) -> None:
    """An update of Nash-MP costs its two products and little else."""
    table = sine_game(10_000, seed=0, dtype=torch.float32)
    log_mu = torch.randn(1, 10_000).log_softmax(-1)
    engine = ClosedFormRounds(
        NashMP(), 0.1, table, log_mu, dict.fromkeys(("policy", "anchor", "lookahead"), log_mu)
    )
    vector = log_mu[0].exp()

    def updates() -> None:
        engine.run(0, rounds)

    def products() -> None:
        for _ in range(2 * rounds):
            torch.mv(table[0], vector)

    rows = [(_seconds(updates) / rounds, _seconds(products) / rounds) for _ in range(repeats)]
    ours, floor = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(a / b for a, b in rows)
    print("| 10,000 actions, float32 | update, ms | two products, ms | ratio | target |")
    print("|---|---|---|---|---|")
    print(f"| Nash-MP, closed form | {1e3 * ours:.1f} | {1e3 * floor:.1f} | {ratio:.2f} | 1.3 |\n")


def million() -> None:
    """Peak memory of training on a million actions."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _MEMORY, str(CONFIG), folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    peak = int(done.stdout.split("PEAK")[1]) / 2**20
    print("| a million actions | peak memory, GiB | seconds, start-up included | target, GiB |")
    print("|---|---|---|---|")
    print(f"| online IPO, 200 rounds, 256 x 256 samples | {peak:.2f} | {seconds:.0f} | 2 |")


def _seconds(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    ten_thousand(arguments.repeats)
    million()
