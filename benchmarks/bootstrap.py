"""``nlhf solve --bootstrap 1000`` against the same command without, in CPU seconds.

    python -m benchmarks.bootstrap [--repeats 5]

An election of 500 voters who rank 8 alternatives, three of which go round in a circle. The commands
run in turn, each in a process of its own on one thread; the figure is the median of the turns'
ratios. The target is 3.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.bench import of_command

VOTERS, ALTERNATIVES = 500, "ABCDEFGH"
TARGET = 3.0
LEADERS = np.array([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 2.0]])


def write_election(path: Path, circle: float) -> None:
    """Write rankings of random utilities, whose first three alternatives form a cycle or none."""
    rng = np.random.default_rng(1)
    utility = np.array([1.6, 1.6, 1.6, 1.0, 0.8, 0.6, 0.3, 0.0])
    utility = utility + 0.5 * rng.gumbel(size=(VOTERS, len(utility)))
    utility[:, :3] += circle * LEADERS[rng.integers(3, size=VOTERS)]
    order = (-utility).argsort(1)
    rows = (" > ".join(ALTERNATIVES[place] for place in own) for own in order)
    path.write_text("\n".join(["ranking", *rows]) + "\n")


def run(repeats: int) -> None:
    """Measure in turn and print a table."""
    print("| election | beta | payoff | without, s | with, s | ratio | target |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        votes = Path(folder) / "votes.csv"
        for name, circle in (("a cycle", 1.0), ("three level", 0.0)):
            write_election(votes, circle)
            for beta, payoff in ((0.1, "identity"), (0.0, "identity"), (0.0, "sign")):
                options = ("--votes", str(votes), "--beta", f"{beta}", "--payoff", payoff)
                turns = [
                    (
                        of_command("solve", *options),
                        of_command("solve", *options, "--bootstrap", "1000"),
                    )
                    for _ in range(repeats + 1)
                ][1:]  # the first one reads the disk
                without, within = (statistics.median(each) for each in zip(*turns, strict=True))
                ratio = statistics.median(two / one for one, two in turns)
                figures = f"{without:.2f} | {within:.2f} | {ratio:.2f}"
                print(f"| {name} | {beta:g} | {payoff} | {figures} | {TARGET:g} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A bootstrap's cost beside the command's own.")
    parser.add_argument("--repeats", type=int, default=5)
    run(parser.parse_args().repeats)
