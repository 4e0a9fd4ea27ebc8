"""The game without regularisation: who reaches its equilibrium, and by which iterate?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.algorithms import EGPO, OptimisticMirrorDescent
from nlhf_zoo.solvers import unregularised_nash
from reproductions.ledger import Figures
from reproductions.play import Game, chunks, comal_game, cycles, last, named, random_games


def game_of(kind: str, games: int = 1, actions: int = 3, seed: int = 0) -> Game:
    """COMAL's game, cycles, or random games; `inner`: random ones that play all of their actions.

    Those are the first, of twenty times as many, whose equilibrium without regularisation is
    unique and gives each action a hundredth at least.
    """
    if kind == "comal":
        return comal_game()
    if kind == "cycles":
        return cycles(actions, 0.9, games, seed)
    if kind == "random":
        return random_games(games, actions, seed)
    many = random_games(20 * games, actions, seed)
    solution = unregularised_nash(many.table)
    inside = (solution.log_policy.exp().amin(-1) > 0.01) & solution.unique
    which = inside.nonzero()[:games, 0]
    if len(which) < games:
        raise ValueError(f"only {len(which)} of {20 * games} games have an equilibrium inside")
    return Game(many.table[which], many.log_mu[which])


def last_iterate(
    game: Mapping[str, Any], method: Mapping[str, Any], beta: float, rounds: int
) -> Figures:
    """The duality gap without regularisation along a play: where it is late, and how it swings.

    `last` is the largest of the games after the last round, `late_most`, `late_least` and
    `late_swing` the largest, the least and the largest range over the last quarter of the rounds;
    `regularised` the largest gap of the regularised game at the end.
    """
    played = game_of(**game)
    gaps: list[Tensor] = []
    for _, policies in chunks(named(**method), played, beta, rounds):
        gaps.append(played.gap(policies, 0.0))
        end = policies[-1]
    late = torch.cat(gaps)[-rounds // 4 :]
    return {
        "last": late[-1].max().item(),
        "late_most": late.max().item(),
        "late_swing": (late.amax(0) - late.amin(0)).max().item(),
        "late_least": late.min().item(),
        "regularised": played.gap(end, beta).max().item(),
    }


def linear_rate(game: Mapping[str, Any], method: Mapping[str, Any], rounds: int) -> Figures:
    """Whether the duality gap without regularisation falls geometrically.

    With the largest gap of each game over each fifth of the rounds, `early` and `late` are the
    least e-folds per thousand rounds from the second to the third, and from the fourth to the fifth
    of the fifths: equal where the rate is linear, and `late` about half of `early` where it is a
    power of the rounds. `fell` is the share of the games whose gap falls by an e-fold at least from
    the first to the last of the fifths, and `late_over_early` the least ratio of these: a gap that
    has hardly moved tells no rate from another.
    """
    played = game_of(**game)
    gaps = torch.cat([played.gap(p, 0.0) for _, p in chunks(named(**method), played, 0.0, rounds)])
    fifths = [part.amax(0).clamp_min(1e-300).log() for part in gaps.chunk(5)]
    per = 5000 / rounds
    early, late = (fifths[1] - fifths[2]) * per, (fifths[3] - fifths[4]) * per
    fell = fifths[0] - fifths[4] >= 1
    return {
        "early": early.min().item(),
        "late": late.min().item(),
        "late_over_early": (late / early)[fell].min().item() if fell.any() else math.nan,
        "fell": fell.double().mean().item(),
        "last": gaps[-1].max().item(),
    }


def average_rate(
    method: str, fixed: bool, scale: float, rounds: Sequence[int], game: Mapping[str, Any]
) -> Figures:
    """The duality gap of the average policy after T rounds, without regularisation.

    The step is ``scale``, or ``scale`` / sqrt(T). `exponent` is the slope of the log of the mean
    gap against log T, and `last_iterate` the mean gap of the last policy after the most rounds.
    """
    played, gaps = game_of(**game), []
    for most in rounds:
        eta = scale if fixed else scale / math.sqrt(most)
        total = torch.zeros_like(played.log_mu)
        for _, policies in chunks(_unregularised(method, eta), played, 0.0, most):
            total += policies.exp().sum(0)
            end = policies[-1]
        gaps.append(played.gap((total / most).log(), 0.0).mean())
    x = torch.tensor(rounds, dtype=torch.float64).log()
    y = torch.stack(gaps).log()
    slope = ((x - x.mean()) * y).sum() / (x - x.mean()).square().sum()
    figures = {f"gap_at_{most}": gap.item() for most, gap in zip(rounds, gaps, strict=True)}
    return {
        "exponent": -slope.item(),
        "last_iterate": played.gap(end, 0.0).mean().item(),
        **figures,
    }


def _unregularised(method: str, eta: float) -> Any:
    optimistic = method == OptimisticMirrorDescent.__name__
    return named(method, eta=eta, **({"regularised": False} if optimistic else {}))


def egpo_without(game: Mapping[str, Any], rounds: Sequence[int], scale: float) -> Figures:
    """EGPO at β = scale log(T) / T for T rounds: the gap of the *original* game that it leaves.

    `exponent` is the slope of the log of the mean gap against log T.
    """
    played, gaps = game_of(**game), []
    for most in rounds:
        beta = scale * math.log(most) / most
        gaps.append(played.gap(last(EGPO(), played, beta, most), 0.0).mean())
    x = torch.tensor(rounds, dtype=torch.float64).log()
    slope = ((x - x.mean()) * torch.stack(gaps).log()).sum() / (x - x.mean()).square().sum()
    figures = {f"gap_at_{most}": gap.item() for most, gap in zip(rounds, gaps, strict=True)}
    return {"exponent": -slope.item(), **figures}
