"""How long commands take to answer, against a bare ``import torch``.

python -m benchmarks.startup [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def _seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def run(repeats: int) -> None:
    """Measure in turn and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        matrix = Path(folder) / "cycle.csv"
        matrix.write_text("0.5,0.9,0.2\n0.1,0.5,0.8\n0.8,0.2,0.5\n")
        solve = ["-m", "nlhf_zoo", "solve", "--matrix", str(matrix), "--beta", "0.1"]
        commands = {
            "import torch": ["-c", "import torch"],
            "nlhf --help": ["-m", "nlhf_zoo", "--help"],
            "nlhf solve, 3 x 3": solve,
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(repeats):
            for name, command in commands.items():
                times[name].append(_seconds(*command))
    torch_times = times["import torch"]
    print("| command | seconds | ratio to import torch | target |\n|---|---|---|---|")
    for name, target in (
        ("import torch", ""),
        ("nlhf --help", "no torch"),
        ("nlhf solve, 3 x 3", "1.5"),
    ):
        ratio = statistics.median(a / b for a, b in zip(times[name], torch_times, strict=True))
        print(f"| {name} | {statistics.median(times[name]):.2f} | {ratio:.2f} | {target} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    run(parser.parse_args().repeats)
