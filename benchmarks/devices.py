"""DDP with one process against no strategy, and whether memory grows over 200 steps.

    python -m benchmarks.devices --gpu [--steps 200] [--repeats 3]
    python -m benchmarks.devices --tiny

On a GPU a random model of Qwen2.5-0.5B's shape in bfloat16 with LoRA of rank 16, online DPO, 8
prompts x 2 responses x 64 tokens; on a CPU a tiny one. Steps of `Trainer.fit` with and without DDP
take turns in one process, behind two that are not counted; a figure is the median of the steps. A
longer run follows: what is allocated behind step 20 and the most behind any later step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from typing_extensions import override

from benchmarks.language import HALF_BILLION, TINY, Size, make_game
from benchmarks.reuse import fit
from nlhf_zoo.algorithms import OnlineDPO
from nlhf_zoo.cli.quiet import quiet

WARM = 2  # steps that are not counted
SETTLED = 20  # steps behind which memory should not grow


class Steps(L.Callback):
    """When each step ended, and what is allocated then."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.allocated: list[int] = []

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
            self.allocated.append(torch.cuda.memory_allocated())
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Of a step."""
        ends = self.ends[WARM:]
        return statistics.median(end - start for start, end in pairwise(ends))


def play(size: Size, strategy: Any, steps: int) -> Steps:
    """Train for so many steps on one batch."""
    counted = Steps()
    where = "gpu" if size.dtype == torch.bfloat16 else "cpu"
    game = make_game(OnlineDPO(), size)
    fit(game, size.batch(), [counted], 1, where, strategy, steps)
    return counted


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--gpu", action="store_true")
    where.add_argument("--tiny", action="store_true", help="a tiny model on a CPU: that it runs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.gpu:
        size = Size(shape=HALF_BILLION, new_tokens=64, dtype=torch.bfloat16)
    else:
        size = Size(shape=TINY, new_tokens=8)
    ratios, short = [], WARM + 11
    with quiet():
        for _ in range(given.repeats):
            plain = play(size, "auto", short).seconds()
            alone = play(size, DDPStrategy(), short).seconds()
            ratios.append(alone / plain)
            print(f"no strategy {plain:.3f} s a step, DDP with one process {alone:.3f} s")
        longer = play(size, "auto", given.steps).allocated
    print(f"DDP with one process: {statistics.median(ratios):.3f} of no strategy")
    if longer:
        settled, most = longer[SETTLED], max(longer[SETTLED:])
        print(
            f"allocated behind step {SETTLED}: {settled / 2**20:,.0f} MiB; the most behind any "
            f"later one of {given.steps}: {most / settled - 1:.2%} more"
        )


if __name__ == "__main__":
    main()
