"""Training steps whose judging overlaps with generation, against the plain order.

    python -m benchmarks.overlap [--repeats 5] [--parts 4] [--delay 0.2]

The game is Nash-MP with a LoRA language model of about 10 M parameters; a batch of 8 prompts is
drawn in parts. The judge waits, as for a server, so long for each part, and says then by a rule who
is better. The same steps are played in turn in the plain order and overlapping; what is drawn and
asked is the same. The ideal is the plain step less the waiting that generation can hide: of all
parts but the last, the lesser of the two.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Sequence

import torch

from benchmarks.language import TEN_MILLION, RandomModel
from nlhf_zoo.algorithms import NashMP
from nlhf_zoo.game.micro_batches import MicroBatches
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.policies import CausalLMPolicy, LoRA
from nlhf_zoo.records import Prompts

PROMPTS, WORDS, NEW_TOKENS = 8, 32, 32


class Waiting(TextOracle):
    """Waits, then prefers the text that comes first in the dictionary."""

    fingerprint = "waiting"

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay

    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """After the delay, all at once."""
        time.sleep(self.delay)
        for number, question in enumerate(questions):
            yield number, float(question.first < question.second)


def make_game(delay: float) -> OnlineGame:
    """A game of language models."""
    policy = CausalLMPolicy(RandomModel(TEN_MILLION), LoRA(r=16, alpha=32), max_new_tokens=32)
    game = OnlineGame(
        policy, Waiting(delay), NashMP(), rollout=Sample(2, 2), realisation=GradientSteps()
    )
    game.eval()
    return game


def step(game: OnlineGame, prompts: Prompts, parts: int, overlap: bool) -> tuple[float, dict]:
    """Seconds of drawing and judging a batch, and of each phase."""
    game.micro_batches = MicroBatches(parts, overlap)
    game.progress.batches = 0  # the same draws in both
    game.timer.take()
    began = time.perf_counter()
    game.play_and_judge(game.step, prompts)
    return time.perf_counter() - began, game.timer.take()


def run() -> None:
    """Measure in turn and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--delay", type=float, default=0.2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    game = make_game(arguments.delay)
    stream = torch.Generator().manual_seed(0)
    tokens = torch.randint(8, 1000, (PROMPTS, WORDS), generator=stream)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    texts = [f"prompt {number}" for number in range(PROMPTS)]
    prompts = game.policy.encode(Prompts(torch.arange(PROMPTS), tokens, mask, texts))
    step(game, prompts, arguments.parts, True)
    rows = []
    for _ in range(arguments.repeats):
        plain, spent = step(game, prompts, arguments.parts, False)
        overlapping, _ = step(game, prompts, arguments.parts, True)
        hidden = (arguments.parts - 1) / arguments.parts * min(spent["generate"], spent["judge"])
        rows.append((plain, overlapping, overlapping / plain, (plain - hidden) / plain))
    plain, overlapping, ratio, ideal = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    print(f"{arguments.parts} parts, {arguments.delay:g} s of waiting for each, median of")
    print(f"{arguments.repeats} turns, one thread, load {os.getloadavg()[0]:.1f}\n")
    print("| plain, s | overlapping, s | ratio | ideal ratio |\n|---|---|---|---|")
    print(f"| {plain:.2f} | {overlapping:.2f} | {ratio:.2f} | {ideal:.2f} |")


if __name__ == "__main__":
    run()
