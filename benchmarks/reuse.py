"""Gradient steps of Nash-MP on a rollout that is held, against those on fresh rollouts.

    python -m benchmarks.reuse [--tokens 128] [--repeats 3] [--threads 1]
    python -m benchmarks.reuse --tiny

The model is that of ``benchmarks.language``, about 10 M parameters; 8 prompts, 2 responses each.
Fresh, each of eight gradient steps of a proximal step draws and judges responses and those of an
opponent. Held, a proximal step draws responses of its opponent once, compares them among
themselves, and takes eight gradient steps on that, or sixteen. A round is two proximal steps by
`Trainer.fit`, behind a first one that is not counted; the three take turns in one process, seconds
are the process's CPU seconds, figures are medians, and a ratio is the median of the turns' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader
from typing_extensions import override

from benchmarks.language import TINY, Size, make_game
from nlhf_zoo.algorithms import NashMP
from nlhf_zoo.callbacks import Budget
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.records import Prompts


class SecondRound(L.Callback):
    """Counts CPU seconds and optimiser steps of the second round."""

    def __init__(self) -> None:
        self.seconds: list[float] = []  # at the end of each round
        self.steps: list[int] = []

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, OnlineGame)
        if pl_module.between_rounds:
            self.seconds.append(time.process_time())
            self.steps.append(trainer.global_step)

    def steps_a_second(self) -> float:
        """Gradient steps a CPU second."""
        (begun, ended), (first, last) = self.seconds, self.steps
        return (last - first) / (ended - begun)


def steps_a_second(size: Size, epochs: int | None) -> float:
    """Of Nash-MP: on rollouts that are passed over so often, or eight steps on fresh ones."""
    if epochs is None:
        algorithm, rollout = NashMP(inner_steps=8), Sample(size.num, size.num)
    else:
        algorithm, rollout = NashMP(self_play=True), Sample(size.num, epochs=epochs)
    game = make_game(algorithm, size, rollout=rollout)
    counted = SecondRound()
    fit(game, size.batch(), [Budget(rounds=2), counted])
    return counted.steps_a_second()


def fit(
    game: OnlineGame,
    prompts: Prompts,
    callbacks: list[L.Callback],
    times: int = 1,
    accelerator: str = "cpu",
    strategy: Any = "auto",
    max_steps: int = -1,
) -> None:
    """Train on one batch of prompts again and again; a batch holds them so many times."""
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        strategy=strategy,
        max_steps=max_steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    numbers = [*range(len(prompts))] * times
    loader = DataLoader(
        numbers,  # type: ignore[arg-type]  # a list is a map-style data set
        batch_size=len(numbers),
        collate_fn=prompts.take,
    )
    trainer.fit(game, loader)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    size = Size(new_tokens=given.tokens)
    if given.tiny:
        size = Size(shape=TINY, new_tokens=8)
    names = {"fresh, 8 steps": None, "held, 8 steps": 8, "held, 16 steps": 16}
    with quiet():
        turns = [
            {name: steps_a_second(size, epochs) for name, epochs in names.items()}
            for _ in range(given.repeats)
        ]
    for name in names:
        figure = statistics.median(turn[name] for turn in turns)
        ratio = statistics.median(turn[name] / turn["fresh, 8 steps"] for turn in turns)
        print(f"{name:<16} {figure:7.3f} gradient steps a CPU second {ratio:6.2f}")


if __name__ == "__main__":
    main()
