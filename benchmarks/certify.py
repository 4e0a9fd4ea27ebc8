"""What `nlhf certify` costs beside what it cannot do without.

    python -m benchmarks.certify [--repeats 3]

Embeddings: the whole estimate of a prompt, against the time that it spends in drawing from a
language model of about 10 M parameters and in reading texts by a small general preference model.
Pairs: the same against drawing and what a judge that answers after 50 ms, 32 at once, cannot be
faster than. Both parts are timed within the same run, so that the ratio is of one and the same
work; figures are medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.language import LowestToken, RandomModel, Size, scatter
from nlhf_zoo.game.certifying import SamplePlan, sample_exploitability
from nlhf_zoo.oracles import GeneralPreferenceModelOracle, JudgeOracle, PreferenceOracle
from nlhf_zoo.policies import CausalLMPolicy, LoRA
from nlhf_zoo.policies.loading import LoadedPlayer
from nlhf_zoo.records import Prompts

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from judge_server import JudgeServer
from oracles.test_general_preference import general

TARGET = 1.2
BETA, TOKENS, DELAY, CONCURRENCY = 0.3, 24, 0.05, 32


class Clock:
    """Seconds spent in calls that are wrapped."""

    def __init__(self) -> None:
        self.spent = 0.0

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def call(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            found = work(*args, **options)
            self.spent += time.perf_counter() - began
            return found

        return call


def player() -> LoadedPlayer:
    """A policy with an adapter that is not zero."""
    size = Size(new_tokens=TOKENS)
    policy = CausalLMPolicy(RandomModel(size.shape), lora=LoRA(r=8), max_new_tokens=TOKENS)
    oracle = LowestToken()
    policy.bind((), oracle.support)
    scatter(policy)
    return LoadedPlayer("policy", policy.eval())


def once(
    who: LoadedPlayer, oracle: PreferenceOracle, plan: SamplePlan, number: int, clock: Clock
) -> float:
    """Seconds of the estimate of a prompt; what the clock has seen is drawing, at least."""
    policy = who.policy
    policy.sample = clock.timed(type(policy).sample.__get__(policy))  # type: ignore[method-assign]
    prompts = policy.encode(Prompts(torch.tensor([number]), text=[f"{number} 2 3 4"]))
    rng = torch.Generator().manual_seed(number)
    began = time.perf_counter()
    sample_exploitability(who, who.reference, oracle, prompts, plan, rng)
    return time.perf_counter() - began


def embeddings(who: LoadedPlayer, repeats: int) -> list[float]:
    """Ratios of the embeddings form."""
    oracle, ratios = GeneralPreferenceModelOracle(general()), []
    plan = SamplePlan(BETA, 128, 128, "embeddings")
    for number in range(repeats + 1):
        clock = Clock()
        oracle._outputs = clock.timed(type(oracle)._outputs.__get__(oracle))  # type: ignore[method-assign]
        seconds = once(who, oracle, plan, number, clock)
        ratios.append(seconds / clock.spent)
    return ratios[1:]  # the first tries what the model can do


def pairs(who: LoadedPlayer, repeats: int) -> list[float]:
    """Ratios of the pairs form with a judge."""
    plan, ratios = SamplePlan(BETA, 64, 8, "pairs"), []
    with JudgeServer(delay=DELAY) as server:
        judge = JudgeOracle(
            "small", server.url, api_key_env=None, concurrency=CONCURRENCY, order="none"
        )
        for number in range(repeats + 1):
            clock, asked = Clock(), judge.ledger.counts()["requests"]
            seconds = once(who, judge, plan, number, clock)
            requests = judge.ledger.counts()["requests"] - asked
            ratios.append(seconds / (clock.spent + requests * DELAY / CONCURRENCY))
    return ratios[1:]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    who = player()
    print(f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores, {repeats} repeats\n")
    print("| form | against | ratio | least | target |\n|---|---|---|---|---|")
    for form, against, measured in (
        ("embeddings", "drawing and embedding", embeddings),
        ("pairs, a judge", "drawing and the judge's ideal", pairs),
    ):
        ratios = measured(who, repeats)
        middle, least = statistics.median(ratios), min(ratios)
        print(f"| {form} | {against} | {middle:.2f} | {least:.2f} | {TARGET} |", flush=True)


if __name__ == "__main__":
    main()
