"""The oracle says with each answer what it says with the other order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.check import Check, at_most
from nlhf_zoo.health.oracles.diagnostics import ROUNDING
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.text_oracle import last_words
from nlhf_zoo.oracles.wrappers.budgeted import queries_per_prompt
from nlhf_zoo.records import PLAIN, Comparison, Prompts, Responses
from nlhf_zoo.records.random_streams import random_stream
from nlhf_zoo.solvers.preference import asymmetry

_MOST_INVALID = 0.1


@torch.no_grad()
def oracle_answers(game: OnlineGame, prompts: Prompts, num: int = 2) -> list[Check]:
    """P(a > b) + P(b > a) = 1 on responses of policy and reference, and answers that can be had.

    Each pair is asked about in both orders, in two questions: within one an oracle may well answer
    one order by the other. One whose answers are drawn is asked about all pairs at once.
    """
    policy, oracle = game.policy, game.oracle
    prompts = policy.encode(prompts)
    rngs = [random_stream(0, 0, number, prompts.ids.device, "oracle") for number in range(2)]
    ours = policy.sample({"policy": 1.0}, prompts, num, PLAIN, rngs[0])
    theirs = policy.sample({"reference": 1.0}, prompts, num, PLAIN, rngs[1])
    mode = oracle.training
    oracle.eval()
    try:
        one: Comparison = oracle(prompts, ours, theirs)
        other: Comparison = oracle(prompts, theirs, ours)
        error, random = _symmetry_error(one, other), False
        if error > oracle.tolerance + ROUNDING:
            again: Comparison = oracle(prompts, ours, theirs)
            random = not torch.equal(one.preference, again.preference)
        if random:
            whole: Comparison = oracle(prompts, ours, replace(ours))
            error = _symmetry_error(whole, whole)
    finally:
        oracle.train(mode)
    answers = torch.cat([one.preference.flatten(), other.preference.flatten()])
    valid = torch.cat([one.valid.flatten(), other.valid.flatten()])
    invalid = float((~valid).float().mean())
    bound = oracle.payoff_bound
    slack = 0.0 if bound == 0.5 else ROUNDING * bound  # a preference is exactly in [0, 1]
    inside = (answers - 0.5).abs() <= bound + slack
    return [
        at_most(
            "P(a > b) + P(b > a) = 1" + (" (answers are drawn)" if random else ""),
            error,
            oracle.tolerance + ROUNDING,
            "the oracle prefers a place: ask it about both orders and average, or correct it",
        ),
        at_most(
            "preferences are probabilities"
            if bound == 0.5
            else f"payoffs lie within {bound:g} of 1/2",
            int((valid & ~inside).sum()),
            0.0,
            f"the oracle must answer in [{0.5 - bound:g}, {0.5 + bound:g}], or mark the answer as "
            "invalid",
            f" of {len(answers)} answers",
        ),
        Check(
            "the oracle answers",
            invalid <= _MOST_INVALID,
            f"{invalid:.0%} of its answers are invalid",
            f"at most {_MOST_INVALID:.0%}",
            f"read what the oracle says of such responses{last_words(oracle)}",
        ),
    ]


def _symmetry_error(one: Comparison, other: Comparison) -> float:
    """Largest |P(a > b) + P(b > a) - 1| of the pairs with both answers; 0 where there are none."""
    error = asymmetry(one.preference, other.preference.mT).abs()[one.valid & other.valid.mT]
    return float(error.max()) if error.numel() else 0.0


@dataclass(slots=True)
class Asked:
    """What an oracle was really asked, for all prompts."""

    queries: int = 0  # distinct pairs, or products P o where responses are enumerated


@contextmanager
def listening(oracle: PreferenceOracle) -> Iterator[Asked]:
    """Count what an oracle is asked, from outside of the game that counts it too."""
    asked, within = Asked(), False
    expected = oracle.expected
    own = vars(oracle)  # what stands here is found before the class's method
    outer = own.get("expected")  # another listener

    def count(prompts: Prompts, first: Responses, second: Responses) -> None:
        asked.queries += len(prompts) * queries_per_prompt(first, second)

    def on_call(_module: Any, arguments: tuple[Prompts, Responses, Responses]) -> None:
        if not within:
            count(*arguments)

    def product(prompts: Prompts, first: Responses, second: Responses) -> tuple[Tensor, Tensor]:
        nonlocal within
        count(prompts, first, second)
        within = True  # the product may ask for all the pairs
        try:
            return expected(prompts, first, second)
        finally:
            within = False

    handle = oracle.register_forward_pre_hook(on_call)
    own["expected"] = product
    try:
        yield asked
    finally:
        handle.remove()
        del own["expected"]
        if outer is not None:
            own["expected"] = outer
