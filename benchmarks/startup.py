"""How long commands take to answer, against a bare import of what they cannot do without.

python -m benchmarks.startup [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

CONFIG = Path(__file__).parent.parent / "configs" / "tabular" / "nash_mp.yaml"
TORCH, LIGHTNING = "import torch", "import lightning.pytorch, torchmetrics, jsonargparse"


@dataclass(frozen=True)
class Command:
    """A command of nlhf, and what it is measured against.

    Args:
        args: the command and its options.
        against: an import.
        target: the ratio that it may have.
        code: the exit code that it has.
    """

    args: list[str]
    against: str
    target: float
    code: int = 0


def commands(folder: Path) -> dict[str, Command]:
    """What is measured, by name."""
    matrix = folder / "cycle.csv"
    matrix.write_text("0.5,0.9,0.2\n0.1,0.5,0.8\n0.8,0.2,0.5\n")
    config = ["--config", str(CONFIG)]
    quick = ["--trainer.logger", "false", "--trainer.max_steps", "1"]
    refused = {
        "a misspelt option": [*config, "--model.algorithm.etta", "0.3"],
        "a misspelt class": [*config, "--model.algorithm", "NashPM"],
        "a missing file": ["--config", "nowhere.yaml"],
    }
    return {
        "nlhf --help": Command(["--help"], TORCH, 0.2),
        "nlhf solve, 3 x 3": Command(
            ["solve", "--matrix", str(matrix), "--beta", "0.1"], TORCH, 1.5
        ),
        "nlhf fit, one training step": Command(["fit", *config, *quick], LIGHTNING, 1.08),
        **{
            f"nlhf fit, refusing {what}": Command(["fit", *args], TORCH, 1.5, code=2)
            for what, args in refused.items()
        },
    }


def _seconds(command: list[str], folder: Path, code: int) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True)
    spent = time.perf_counter() - start
    if done.returncode != code:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr.decode()}")
    return spent


def run(repeats: int) -> None:
    """Measure in turn and print a table."""
    print("| command | seconds | against | ratio | target |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, command in commands(folder).items():
            nlhf = [sys.executable, "-m", "nlhf_zoo", *command.args]
            bare = [sys.executable, "-c", command.against]
            times, ratios = [], []
            for _ in range(repeats + 1):
                base = _seconds(bare, folder, 0)
                times.append(_seconds(nlhf, folder, command.code))
                ratios.append(times[-1] / base)
            ratio, seconds = (statistics.median(values[1:]) for values in (ratios, times))
            figures = f"{seconds:.2f} | {command.against} | {ratio:.2f} | {command.target}"
            print(f"| {what} | {figures} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    run(parser.parse_args().repeats)
