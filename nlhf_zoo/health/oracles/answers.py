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
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.wrappers.budgeted import queries_per_prompt
from nlhf_zoo.random_streams import random_stream
from nlhf_zoo.records import PLAIN, Comparison, Prompts, Responses

_MOST_INVALID = 0.1
_FLOAT = 1e-6  # of P and 1 - P in float32


@torch.no_grad()
def oracle_answers(game: OnlineGame, prompts: Prompts, num: int = 2) -> list[Check]:
    """P(a > b) + P(b > a) = 1 on responses of policy and reference, and answers that can be had.

    Each pair is asked about in both orders, in two questions: within one an oracle may well answer
    one order by the other. One whose answers are drawn is asked about all pairs at once.
    """
    policy, oracle = game.policy, game.oracle
    prompts = policy.encode(prompts)
    ours, theirs = (
        policy.sample({player: 1.0}, prompts, num, PLAIN, _stream(number, prompts))
        for number, player in enumerate(("policy", "reference"))
    )
    mode = oracle.training
    oracle.eval()
    try:
        one: Comparison = oracle(prompts, ours, theirs)
        other: Comparison = oracle(prompts, theirs, ours)
        gap, random = _asymmetry(one, other), False
        if gap > oracle.tolerance + _FLOAT:
            again: Comparison = oracle(prompts, ours, theirs)
            random = not torch.equal(one.preference, again.preference)
        if random:
            whole: Comparison = oracle(prompts, ours, replace(ours))
            gap = _asymmetry(whole, whole)
    finally:
        oracle.train(mode)
    invalid = float((~torch.cat([one.valid.flatten(), other.valid.flatten()])).float().mean())
    outside = sum(_outside(comparison) for comparison in (one, other))
    return [
        at_most(
            "P(a > b) + P(b > a) = 1" + (" (answers are drawn)" if random else ""),
            gap,
            oracle.tolerance + _FLOAT,
            "the oracle prefers a place: ask it about both orders and average, or correct it",
        ),
        at_most(
            "preferences are probabilities",
            outside,
            0.0,
            "the oracle must answer in [0, 1], or mark the answer as invalid",
            f" of {2 * one.valid.numel()} answers",
        ),
        Check(
            "the oracle answers",
            invalid <= _MOST_INVALID,
            f"{invalid:.0%} of its answers are invalid",
            f"at most {_MOST_INVALID:.0%}",
            "read what the oracle says of such responses",
        ),
    ]


def _stream(number: int, prompts: Prompts) -> torch.Generator:
    return random_stream(3, number, 0, prompts.ids.device)


def _asymmetry(one: Comparison, other: Comparison) -> float:
    """Largest |P(a > b) + P(b > a) - 1| of the pairs with both answers."""
    sums = one.preference.double() + other.preference.mT.double()
    off = (sums - 1).abs()[one.valid & other.valid.mT]
    return float(off.max()) if off.numel() else 0.0


def _outside(comparison: Comparison) -> int:
    inside = (comparison.preference >= 0) & (comparison.preference <= 1)
    return int((comparison.valid & ~inside).sum())


@dataclass(slots=True)
class Asked:
    """What an oracle was really asked.

    Args:
        queries: distinct pairs, or products P o where responses are enumerated, of all prompts.
        calls: questions, each of many pairs.
    """

    queries: int = 0
    calls: int = 0


@contextmanager
def listening(oracle: PreferenceOracle) -> Iterator[Asked]:
    """Count what an oracle is asked, from outside of the game that counts it too."""
    asked, within = Asked(), [False]
    outer = vars(oracle).get("expected")  # another listener
    expected = oracle.expected

    def heard(_module: Any, arguments: tuple[Prompts, Responses, Responses]) -> None:
        if not within[0]:
            prompts, first, second = arguments
            asked.calls += 1
            asked.queries += len(prompts) * queries_per_prompt(first, second)

    def product(prompts: Prompts, first: Responses, second: Responses) -> tuple[Tensor, Tensor]:
        asked.calls += 1
        asked.queries += len(prompts) * queries_per_prompt(first, second)
        within[0] = True  # the product may ask for all the pairs
        try:
            return expected(prompts, first, second)
        finally:
            within[0] = False

    handle = oracle.register_forward_pre_hook(heard)
    oracle.expected = product  # type: ignore[method-assign]  # for as long as it is listened to
    try:
        yield asked
    finally:
        handle.remove()
        del oracle.expected
        if outer is not None:
            oracle.expected = outer  # type: ignore[method-assign]
