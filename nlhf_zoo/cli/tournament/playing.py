"""Which pairs of a tournament are judged, on which prompts, and when it is enough."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

import numpy as np
from tqdm import tqdm

from nlhf_zoo.cli.tournament.judging import Judge, Place, questions_of
from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers.pairing import (
    Pair,
    intervals_part,
    opening_prompts,
    round_pairs,
    round_prompts,
)
from nlhf_zoo.solvers.ratings import (
    bradley_terry,
    bradley_terry_interval,
    resampled_wins,
    total_wins,
)

Pairing = Literal["all", "swiss"]

_RESAMPLES = 200  # of each round: whether intervals part needs no more
_LEAST_PRIOR = 1e-3  # by which rounds are paired, for in the first ones somebody is unbeaten


def play(judge: Judge, pairing: Pairing, prior: float, budget: int | None, seed: int) -> str:
    """Judge all pairs, or those that Swiss pairing asks for; why no more were, in words.

    Raises:
        UserError: the budget is too small for all pairs to meet once.
        OracleStoppedError: the oracle cannot be asked any more.
    """
    players, prompts = len(judge.field.names), judge.field.num_prompts
    pairs = players * (players - 1) // 2
    first = prompts if pairing == "all" else opening_prompts(prompts)
    if budget is not None and budget < pairs * (1 if pairing == "all" else first):
        least = pairs if pairing == "all" else pairs * first
        raise UserError(
            f"--budget {budget} is too small for all {pairs} pairs to meet "
            f"{'on one prompt' if least == pairs else f'on {first} prompts'}: give {least} at least"
        )
    total = pairs * prompts if budget is None else min(budget, pairs * prompts)
    with tqdm(desc="judging", total=total, unit=" pairs", delay=1, file=sys.stderr) as bar:
        if pairing == "all":
            return _all(judge, budget, bar)
        return _swiss(judge, prior, budget, seed, bar)


def _all(judge: Judge, budget: int | None, bar: tqdm[None]) -> str:
    places = questions_of(judge.field)
    field = judge.field
    if budget is not None:
        # Whole prompts, as many as the budget pays for; equal answers cost nothing.
        costs = np.zeros(field.num_prompts, dtype=int)
        for prompt, i, j in places:
            costs[prompt] += field.question(prompt, i, j) is not None
        paid = int((costs.cumsum() <= budget).sum())
        places = [place for place in places if place[0] < paid]
        if paid < field.num_prompts:
            _judge(judge, places, bar)
            return f"the budget pays for {paid} of {field.num_prompts} prompts"
    _judge(judge, places, bar)
    return "all pairs were judged on all prompts"


def _judge(judge: Judge, places: Sequence[Place], bar: tqdm[None]) -> None:
    for _ in judge.judge(places):
        bar.update()


def _swiss(judge: Judge, prior: float, budget: int | None, seed: int, bar: tqdm[None]) -> str:
    num, prompts = len(judge.field.names), judge.field.num_prompts
    # Each pair goes through the prompts in an order of its own, so that rounds see all of them.
    orders = {
        (i, j): np.random.default_rng([seed, i, j]).permutation(prompts)
        for i in range(num)
        for j in range(i + 1, num)
    }
    _judge(judge, _next(judge, [*orders], orders, opening_prompts(prompts)), bar)
    number = 0
    while True:
        preference = judge.preference()
        wins, prior = total_wins(preference), max(prior, _LEAST_PRIOR)
        ratings = bradley_terry(wins, prior)
        resampled = resampled_wins(preference, _RESAMPLES, seed)
        if intervals_part(ratings, *bradley_terry_interval(wins, resampled, prior, ratings)):
            return "the intervals of all neighbours part"
        pairs = round_pairs(number, ratings, wins, prior, judge.met(), prompts)
        places = _next(judge, pairs, orders, round_prompts(prompts))
        if not places:
            return "all pairs were judged on all prompts"
        left = None if budget is None else budget - judge.num_asked
        if left is not None:
            places = _within(judge, places, left)
            if not places:
                return f"the budget of {budget} answers is spent"
        _judge(judge, places, bar)
        number += 1


def _next(
    judge: Judge, pairs: Sequence[Pair], orders: dict[Pair, np.ndarray], num: int
) -> list[Place]:
    """The next prompts of some pairs, as many of each as there are up to ``num``."""
    met = judge.met()
    return [
        (int(prompt), i, j)
        for i, j in pairs
        for prompt in orders[i, j][met[i, j] : met[i, j] + num]
    ]


def _within(judge: Judge, places: Sequence[Place], left: int) -> list[Place]:
    """The first places, as many as ``left`` answers pay for."""
    paid: list[Place] = []
    for place in places:
        left -= judge.field.question(*place) is not None
        if left < 0:
            break
        paid.append(place)
    return paid
