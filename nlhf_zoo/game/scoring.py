"""Scoring responses: from log-probabilities and payoffs to what a loss is computed from."""

from __future__ import annotations

import torch
from torch import Tensor

from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.records import Batch, Prompts, ProximalStep, Responses


def score(
    policy: Policy,
    step: ProximalStep,
    prompts: Prompts,
    responses: Responses,
    payoffs: Payoffs,
    beta: float,
) -> Batch:
    """Log-probabilities of the responses under the step's players, and weights of the valid.

    Invalid answers get weight 0, and the others' weights are scaled to sum to 1 again; a prompt
    whose answers are all invalid has no weight at all.

    Args:
        policy: the players.
        step: the proximal step.
        prompts: B prompts.
        responses: K scored responses a prompt.
        payoffs: what the oracle said of them.
        beta: temperature of the game.

    Returns:
        the batch; gradient flows through its ``log_prob`` alone.
    """
    log_prob = policy.log_prob({"policy": 1.0}, prompts, responses)
    log_probs = {"policy": log_prob.detach()}
    with torch.no_grad():
        for player in {*step.centre, step.reference} - {"policy"}:
            log_probs[player] = policy.log_prob({player: 1.0}, prompts, responses)
        centre = torch.zeros_like(log_prob)
        for player, weight in step.centre.items():
            if weight:
                centre = centre + weight * log_probs[player]
        pair_weight = None
        if step.pairs and payoffs.pair_valid is not None:
            pair_weight = _renormalise(responses.pair_weight() * payoffs.pair_valid, (-2, -1))
    return Batch(
        log_prob=log_prob,
        centre_log_prob=centre,
        reference_log_prob=log_probs[step.reference],
        payoff=payoffs.payoff,
        weight=_renormalise(responses.weight * payoffs.valid, (-1,)),
        beta=beta,
        enumerated=responses.enumerated,
        self_play=step.self_play and not responses.enumerated,
        preference=payoffs.preference,
        pair_weight=pair_weight,
    )


def _renormalise(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    total = weight.sum(dims, keepdim=True)
    return weight / torch.where(total > 0, total, torch.ones_like(total))
