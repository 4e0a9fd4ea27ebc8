"""What papers prove of a step, of its fixed point and of its progress, in exact form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.adaptive import references
from nlhf_zoo.algorithms import IPOMD, REBEL, RSPO, NashMD, PolicyOptimizer
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.data.tables.games import bradley_terry, bradley_terry_scores
from nlhf_zoo.records import Batch
from nlhf_zoo.solvers import regularised_nash, win_rate
from reproductions.ledger import Figures
from reproductions.original import game_of
from reproductions.play import Game, last, named, random_games, trajectory
from reproductions.rewards import distance


def improvement(game: Mapping[str, Any], method: Mapping[str, Any], rounds: int) -> Figures:
    """Whether each policy of a play wins against the one before it, and against the first.

    `least_win` is the least of P(new > old) - 1/2 over the rounds and games. `falls` is the share
    of the games in which the win rate against the reference falls by a hundredth or more from its
    largest value to the end, and `gap_grows` that in which the duality gap without regularisation
    is larger at the end than it was somewhere before, by a tenth of the reference's or more.
    """
    played = game_of(**game)
    _, policies = trajectory(named(**method), played, 0.0, rounds)
    steps = torch.stack([win_rate(played.table, new, old) for old, new in pairwise(policies)])
    rates = torch.stack([win_rate(played.table, policy, policies[0]) for policy in policies])
    gaps = played.gap(policies, 0.0)
    return {
        "least_win": (steps - 0.5).min().item(),
        "falls": (rates.amax(0) - rates[-1] >= 0.01).double().mean().item(),
        "most_fall": (rates.amax(0) - rates[-1]).max().item(),
        "gap_grows": (gaps[-1] - gaps.amin(0) >= 0.1 * gaps[0]).double().mean().item(),
    }


def _batch(
    log_prob: Tensor, log_mu: Tensor, payoff: Tensor, centre: Tensor, weight: Tensor, beta: float
) -> Batch:
    """Every response of a table, at weights that carry no gradient."""
    return Batch(
        log_prob=log_prob,
        centre_log_prob=centre,
        reference_log_prob=log_mu,
        payoff=payoff,
        weight=weight,
        beta=beta,
        enumerated=True,
        self_play=True,
        explored_log_prob=log_prob,
        explored_weight=log_mu.exp(),
    )


def _gradient(algorithm: PolicyOptimizer, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Of an algorithm's loss of its first step, by the logits [C, N]."""
    logits = logits.detach().requires_grad_()
    (step,) = algorithm.steps(batch["beta"], 0)
    loss = algorithm.loss(step, _batch(logits.log_softmax(-1), **batch))
    return torch.autograd.grad(loss.sum(), logits)[0]


def natural_gradient(eta: float, actions: int, games: int, seed: int) -> Figures:
    """The minimiser of REBEL's regression beside a step of the natural policy gradient.

    The step is eta times the Fisher matrix's pseudo-inverse on the gradient of E r, from random
    policies. `differ` is the largest total variation between the two policies, and `at_step` the
    largest entry of the gradient of REBEL's loss at the natural gradient's step.
    """
    scores = bradley_terry_scores(games, actions, seed)
    anchor = references(scores[..., None].expand(-1, -1, actions), seed + 1)
    law = anchor.exp()
    fisher = torch.diag_embed(law) - law[:, :, None] * law[:, None, :]
    gradient = (fisher @ scores[..., None])[..., 0]
    step = eta * (torch.linalg.pinv(fisher, hermitian=True) @ gradient[..., None])[..., 0]
    natural = (anchor + step).log_softmax(-1)
    algorithm, table = REBEL(eta), bradley_terry(games, actions, seed)
    players = {"policy": anchor, "anchor": anchor}
    rounds = ClosedFormRounds(algorithm, 0.1, table, anchor, players, scores=scores)
    taken = rounds.run(0, 1).log_policy[-1].log_softmax(-1)
    batch = {
        "log_mu": anchor, "payoff": scores, "centre": anchor, "weight": law, "beta": 0.1,
    }  # fmt: skip
    return {
        "differ": distance(taken, natural).max().item(),
        "at_step": _gradient(algorithm, natural, batch).abs().max().item(),
    }


def best_score(eta: float, actions: int, games: int, seed: int, rounds: int) -> Figures:
    """How far REBEL's mean score is from the best, over log(1 / mu(y*)) / (eta T): the largest.

    On Bradley-Terry preferences, from random references; T counts the rounds. `last` is the largest
    distance after the last round, over that of the reference.
    """
    scores, table = bradley_terry_scores(games, actions, seed), bradley_terry(games, actions, seed)
    log_mu = references(table, seed + 1)
    players = {"policy": log_mu, "anchor": log_mu}
    play = ClosedFormRounds(REBEL(eta), 0.1, table, log_mu, players, scores=scores)
    policies = play.run(0, rounds).log_policy.log_softmax(-1)
    best, which = scores.max(-1)
    left = best - (policies.exp() * scores).sum(-1)
    start = best - (log_mu.exp() * scores).sum(-1)
    surprise = -log_mu.gather(-1, which[:, None])[:, 0]
    number = torch.arange(1, rounds + 1, dtype=scores.dtype)[:, None]
    return {
        "worst": (left * eta * number / surprise).max().item(),
        "last": (left[-1] / start).max().item(),
    }


def rspo_at_rest(
    beta: float, forward_kl: float, actions: int, games: int, seed: int, steps: int, lr: float
) -> Figures:
    """Where RSPO with both divergences ends, by gradient steps on its loss.

    An equilibrium of the game with both divergences is where (P pi)(y) - beta log(pi/mu)(y) +
    lambda mu(y)/pi(y) is the same for all y. `gain` is the largest of it over its mean under the
    policy, the most of all games, which no change of the policy can gain more than; `start` is the
    least of the same at the reference. `moved` is the largest total variation between that end and
    the equilibrium without the forward divergence.
    """
    game, algorithm = random_games(games, actions, seed), RSPO(0.3, beta, forward_kl)

    def gain(log_policy: Tensor) -> Tensor:
        ratio = log_policy - game.log_mu
        value = _payoff(game, log_policy) - beta * ratio + forward_kl * (-ratio).exp()
        return value.amax(-1) - (log_policy.exp() * value).sum(-1)

    log_policy = game.log_mu
    for _ in range(steps):
        batch = {
            "log_mu": game.log_mu,
            "payoff": _payoff(game, log_policy),
            "centre": (1 - 0.3 * beta) * log_policy + 0.3 * beta * game.log_mu,
            "weight": log_policy.exp(),
            "beta": beta,
        }
        taken = _gradient(algorithm, log_policy, batch)
        log_policy = (log_policy - lr * taken).log_softmax(-1)
    nash = regularised_nash(game.table, game.log_mu, beta).log_policy
    return {
        "gain": gain(log_policy).max().item(),
        "start": gain(game.log_mu).min().item(),
        "moved": distance(log_policy, nash).max().item(),
    }


def ipo_md_at_rest(
    beta: float, weights: Sequence[float], actions: int, games: int, seed: int, rounds: int
) -> Figures:
    """IPO-MD's gradient where Nash-MD with the same mixing weight rests, and at both ends.

    Nash-MD, with a constant step and the weight in its opponent alone, is played to its rest.
    `at_rest` is the largest entry of the expected gradient of IPO-MD's loss there, over weights and
    games, beside `elsewhere` at random policies. `ends` is the largest total variation between the
    rest at a weight of 0 and the equilibrium, and at 1 and mu exp(P mu / beta), where IPO's loss on
    pairs of the reference is least.
    """
    game = random_games(games, actions, seed)
    nash = regularised_nash(game.table, game.log_mu, beta).log_policy
    offline = (game.log_mu + _payoff(game, game.log_mu) / beta).log_softmax(-1)
    others, rests, found = references(game.table, seed + 1), {}, {"at_rest": 0.0, "elsewhere": 0.0}
    for weight in (0.0, *weights, 1.0):
        rests[weight] = last(NashMD(1.0, mixture=weight), game, beta, rounds)
        for name, log_policy in (("at_rest", rests[weight]), ("elsewhere", others)):
            drawn = ((1 - weight) * log_policy + weight * game.log_mu).log_softmax(-1)
            batch = {
                "log_mu": game.log_mu,
                "payoff": _payoff(game, drawn),
                "centre": game.log_mu,
                "weight": drawn.exp(),
                "beta": beta,
            }
            entry = _gradient(IPOMD(mixture=weight), log_policy, batch).abs().max().item()
            found[name] = max(found[name], entry)
    ends = (distance(rests[0.0], nash), distance(rests[1.0], offline))
    return {**found, "ends": max(end.max().item() for end in ends)}


def _payoff(game: Game, log_policy: Tensor) -> Tensor:
    """(P pi)(y) [C, N]."""
    return (game.table @ log_policy.exp()[..., None])[..., 0]
