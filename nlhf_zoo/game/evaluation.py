"""How a policy does against the reference, by the oracle that trains it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlhf_zoo.records import PLAIN, Prompts
from nlhf_zoo.records.random_streams import random_stream

if TYPE_CHECKING:
    from nlhf_zoo.game.online_game import OnlineGame


def win_rates(game: OnlineGame, prompts: Prompts, number: int) -> Tensor:
    """P(policy > reference) of those prompts that the oracle answers [n], by the rollout's samples.

    Nothing is asked about a prompt that stands in for one.

    Args:
        game: nothing of it is changed.
        prompts: B prompts.
        number: of the batch in this process, by which responses are drawn.

    Raises:
        OracleStoppedError: the oracle cannot be asked any more, here or in another process.
    """
    with game.timer.failing_in("validation"):
        return game.accounts.unless_stopped(partial(_win_rates, game, prompts, number))


def _win_rates(game: OnlineGame, prompts: Prompts, number: int) -> Tensor:
    rng = random_stream(0, game.global_rank, number, game.device, "validation")
    draw, rollout = partial(game.rollout.responses, game.policy), game.rollout
    ours = draw({"policy": 1.0}, prompts, rollout.num_responses, PLAIN, rng)
    theirs = draw({"reference": 1.0}, prompts, rollout.num_opponents, PLAIN, rng)
    if (prompts.ids < 0).any():
        return ours.weight.new_zeros(0)
    payoff, valid = game.oracle.expected(prompts, ours, theirs)
    weight = ours.weight * valid
    answered = weight.sum(-1) > 0
    won = torch.where(valid, weight * payoff, 0.0).sum(-1)
    return won[answered] / weight.sum(-1)[answered]
