"""Prompts a second of two processes with DDP, against one, at an equal batch for each process.

    python -m benchmarks.processes [--repeats 3] [--steps 6] [--processes 2]

The game is online DPO on a random Llama of about 10 M parameters with LoRA, 8 prompts x 2 responses
x 64 tokens in each process, one thread each. One process and two take turns; a step is the median
without the first, of the first process, which waits for the others at each exchange. A ratio is the
median of the turns' ratios. It needs as many idle processors as there are processes: on a busy
machine look at the processor's own seconds for a prompt, which waiting does not raise.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader

from benchmarks.language import Size, Turns, make_game, median
from nlhf_zoo.algorithms import OnlineDPO
from nlhf_zoo.callbacks import HangWatch
from nlhf_zoo.cli.quiet import SILENT_TRAINER, quiet


class Written(L.Callback):
    """Writes what its process has measured.

    Args:
        folder: one file in there for each process.
        turns: the clocks; each has the seconds of all steps.
    """

    def __init__(self, folder: Path, turns: list[Turns]) -> None:
        self.folder, self.turns = folder, turns

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the medians."""
        figures = [median(each.seconds) for each in self.turns]
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(figures))


def play(processes: int, steps: int, folder: Path) -> None:
    """Train in so many processes; to be called in a process of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    size = Size()
    turns = [Turns(lambda: None, now) for now in (time.perf_counter, time.process_time)]
    with quiet():
        trainer = L.Trainer(
            accelerator="cpu",
            devices=processes,
            strategy="ddp_fork" if processes > 1 else "auto",
            max_steps=steps,
            logger=False,
            callbacks=[HangWatch(), *turns, Written(folder, turns)],
            **SILENT_TRAINER,
        )
        game = make_game(OnlineDPO(), size)
        trainer.fit(game, DataLoader([size.batch()] * steps, batch_size=None))


def measured(processes: int, steps: int) -> tuple[float, float]:
    """Prompts a second of all processes, and the processor's seconds for a prompt."""
    with tempfile.TemporaryDirectory() as folder:
        work = functools.partial(play, processes, steps, Path(folder))
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join()
        found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    assert len(found) == processes
    wall, prompts = found[0][0], Size().prompts
    return processes * prompts / wall, statistics.mean(cpu for _, cpu in found) / prompts


def main() -> None:
    """Measure in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    turns = [
        [measured(number, arguments.steps) for number in (1, arguments.processes)]
        for _ in range(arguments.repeats)
    ]
    print(f"median of {arguments.repeats} turns, {os.cpu_count()} processors, load "
          f"{os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| processes | prompts a second | processor's seconds for a prompt |\n|---|---|---|")
    for index, number in enumerate((1, arguments.processes)):
        speed, cpu = (statistics.median(turn[index][i] for turn in turns) for i in (0, 1))
        print(f"| {number} | {speed:.2f} | {cpu:.3f} |")
    ratios = [[many[i] / one[i] for one, many in turns] for i in (0, 1)]
    speed, cpu = map(statistics.median, ratios)
    print(f"| ratio | {speed:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
