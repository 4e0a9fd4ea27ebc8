"""Two methods on one budget, each with its own step: which is ahead on more games?

Steps are chosen on other games than those that are reported, and the share of games that a method
wins has an interval of stated confidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.algorithms import NashMD
from nlhf_zoo.solvers import exploitability, score_interval, win_rate
from reproductions.ledger import Figures
from reproductions.play import Game, cycles, last, named, queries_to, random_games
from reproductions.rewards import bradley_terry_policy


def counts(
    method: Mapping[str, Any],
    etas: Sequence[float] | None,
    tuning: Game,
    game: Game,
    beta: float,
    gap: float,
    most: int,
) -> tuple[Tensor, float | None]:
    """Queries that a method needs on each game [C], with the step that was best on others.

    The best step solves most of the tuning games, and in the fewest queries at the median.
    """
    if etas is None:
        return queries_to(named(**method), game, beta, gap, most), None
    tried = []
    for eta in etas:
        if eta * beta <= 1:
            found = queries_to(named(**method, eta=eta), tuning, beta, gap, most)
            tried.append((found.isinf().sum().item(), found.median().item(), eta))
    eta = min(tried)[2]
    return queries_to(named(**method, eta=eta), game, beta, gap, most), eta


def ahead(
    method: Mapping[str, Any],
    rival: Mapping[str, Any],
    etas: Sequence[float] | None,
    rival_etas: Sequence[float],
    beta: float,
    gap: float,
    most: int,
    games: int,
    tuning_games: int,
    actions: int,
    seed: int,
    unit: str = "queries",
    cyclic: bool = False,
    confidence: float = 0.99,
) -> Figures:
    """Whose duality gap is below a target first, on random games or on cycles, at their best steps.

    `share` is the part of the games on which the method needs less than its rival, ties as halves,
    with the ends of its interval; a game that neither solves is a tie. In rounds, a round counts 1
    whatever it asks for.
    """
    made = partial(cycles, actions, 0.9) if cyclic else partial(random_games, actions=actions)
    tuning, game = made(number=tuning_games, seed=seed + 1), made(number=games, seed=seed)
    ours, eta = counts(method, etas, tuning, game, beta, gap, most)
    theirs, rival_eta = counts(rival, rival_etas, tuning, game, beta, gap, most)
    mine, other = ours.clone(), theirs.clone()
    if unit == "rounds":
        mine /= len(named(**method).steps(beta, 0))
        other /= len(named(**rival).steps(beta, 0))
    wins = (mine < other).double() + 0.5 * (mine == other).double()
    low, high = score_interval(
        wins.sum().item(), wins.square().sum().item(), games, confidence, most=games
    )
    return {
        "share": wins.mean().item(),
        "share_low": low,
        "share_high": high,
        "median": mine.median().item(),
        "rival_median": other.median().item(),
        "unsolved": ours.isinf().double().mean().item(),
        "rival_unsolved": theirs.isinf().double().mean().item(),
        **({} if eta is None else {"eta": eta}),
        **({} if rival_eta is None else {"rival_eta": rival_eta}),
    }


def mixing_weights(
    beta: float,
    eta: float,
    weights: Sequence[float],
    middle: Sequence[float],
    games: int,
    actions: int,
    seed: int,
    rounds: int,
    z: float = 2.576,
) -> Figures:
    """Nash-MD at each mixing weight, from 0 (self-play) to 1 (best response to the reference).

    As in the paper it is judged by its win rate against the policy of a reward model, which is the
    reference tilted by the best Bradley-Terry rewards. `advantage` is that of the best weight of
    the middle, chosen on the first half of the games, over the better end, on the second half, with
    an interval of z standard errors; `exploitability_at_*` says how far each is from the
    equilibrium.
    """
    game = random_games(games, actions, seed)
    rival = bradley_terry_policy(game.table, game.log_mu, beta)
    rates, figures = {}, {}
    for weight in weights:
        policy = last(NashMD(eta, mixture=weight), game, beta, rounds)
        rates[weight] = win_rate(game.table, policy, rival)
        figures[f"win_rate_at_{weight:g}"] = rates[weight].mean().item()
        left = exploitability(game.table, policy, game.log_mu, beta)
        figures[f"exploitability_at_{weight:g}"] = left.mean().item()
    means = torch.stack([rates[weight].mean() for weight in weights])
    rises = (means.diff() > 0).long()
    half = games // 2
    best = max(middle, key=lambda weight: rates[weight][:half].mean().item())
    end = max((0.0, 1.0), key=lambda weight: rates[weight][:half].mean().item())
    gain = (rates[best] - rates[end])[half:]
    mean, error = gain.mean().item(), (gain.std() / math.sqrt(len(gain))).item()
    return {
        "advantage": mean,
        "advantage_low": mean - z * error,
        "advantage_high": mean + z * error,
        "best_weight": weights[int(means.argmax())],
        "peaks": float((rises.diff() == -1).sum().item() + (rises[0] == 0) + (rises[-1] == 1)),
        **figures,
    }
