"""Draws by which the policy of a game bounds the exploitability of its ``opponent`` from below."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nlhf_zoo.algorithms.best_response import OPPONENT
from nlhf_zoo.game import designs
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.records import PLAIN, Prompts
from nlhf_zoo.records.random_streams import random_stream
from nlhf_zoo.solvers.lower_bound import bound_of_draws

ANSWERS = 2  # of the oracle, to a draw
_POLICY, _REFERENCE, _OPPONENT = {"policy": 1.0}, {"reference": 1.0}, {OPPONENT: 1.0}


@dataclass(frozen=True, slots=True)
class BoundDraws:
    """Independent draws of the bound.

    Args:
        draws: n for each of B prompts [B, n], float64.
        answers: that were asked for.
        invalid: those that could not be had.
    """

    draws: Tensor
    answers: int
    invalid: int


@torch.no_grad()
def draw_bound(
    game: OnlineGame, prompts: Prompts, num: int, seed: int, stream: int, rows: int
) -> BoundDraws:
    """Draws of the bound, each of three responses and two answers.

    An answer that could not be had counts as the worst that it could be, so that the bound holds.

    Args:
        game: with a player ``opponent``; nothing of it is changed but what the oracle counts.
        prompts: B prompts.
        num: draws for each.
        seed: of what is drawn.
        stream: a number; each has draws of its own.
        rows: responses that are drawn at a time; draws depend on it.

    Raises:
        OracleStoppedError: the oracle cannot be asked any more.
    """
    at_once = min(num, rows)  # draws for a prompt
    sizes = [min(at_once, num - done) for done in range(0, num, at_once)]
    draws, invalid, part = [], 0, 0
    for batch in prompts.split(-(-len(prompts) * at_once // rows)):
        of_batch = []
        for size in sizes:
            rng = random_stream(seed, 0, stream, game.device, "best response", part)
            found, missing = game.accounts.unless_stopped(partial(_draws, game, batch, size, rng))
            of_batch.append(found)
            invalid += missing
            part += 1
        draws.append(torch.cat(of_batch, 1))
    game.accounts.settle_ledgers()
    return BoundDraws(torch.cat(draws), len(prompts) * num * ANSWERS, invalid)


def _draws(
    game: OnlineGame, prompts: Prompts, num: int, rng: torch.Generator
) -> tuple[Tensor, int]:
    """Draws for some prompts [B, n], and how many answers could not be had."""
    policy = game.policy
    prompts = policy.encode(prompts.to(game.device))
    scored = [policy.sample(who, prompts, num, PLAIN, rng) for who in (_POLICY, _OPPONENT)]
    opponents = policy.sample(_OPPONENT, prompts, num, PLAIN, rng)
    columns = []
    for responses in scored:
        answers = designs.ask_in_pairs(game.oracle, prompts, responses, opponents)
        ours, theirs, reference = (
            policy.log_prob(who, prompts, responses) for who in (_POLICY, _OPPONENT, _REFERENCE)
        )
        columns.append((*answers, ours - reference, theirs - reference))
    won, valid, ours, theirs = (torch.stack(each, -1) for each in zip(*columns, strict=True))
    bound = game.oracle.payoff_bound
    return bound_of_draws(won, ours, theirs, game.beta, valid, bound), int((~valid).sum())
