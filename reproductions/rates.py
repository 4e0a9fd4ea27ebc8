"""How fast last iterates come near the equilibrium of the regularised game."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.algorithms import NashMD, NashMP, NashProx
from nlhf_zoo.data.tables.games import cyclic_blocks
from nlhf_zoo.solvers import kl_to_nash, regularised_nash, trajectory_metrics
from reproductions.ledger import Figures
from reproductions.play import Game, chunks, last, named, queries_to, random_games, trajectory

_DIGITS = 1e-11  # below it, relative to 1, the equilibrium's own rounding shows


def measured(game: Game, beta: float, rounds: int) -> dict[str, Tensor]:
    """Exact metrics [R + 1, C] of Nash-MP at its default step, the start before all."""
    nash = regularised_nash(game.table, game.log_mu, beta).log_policy
    _, policies = trajectory(NashMP(), game, beta, rounds)
    return trajectory_metrics(game.table, policies, game.log_mu, beta, nash)


def rounds_of(beta: float, most: int) -> int:
    """Rounds until (1 + 2 beta)^-k is 1e-12, at most ``most``."""
    return min(most, math.ceil(12 * math.log(10) / math.log1p(2 * beta)))


def kl_bound(
    betas: Sequence[float], actions: Sequence[int], games: int, seed: int, most_rounds: int
) -> Figures:
    """KL(π* ‖ π) of Nash-MP over its bound, after each round: the largest ratio."""
    figures: Figures = {}
    for beta in betas:
        worst = 0.0
        for num in actions:
            rounds = rounds_of(beta, most_rounds)
            kl = measured(random_games(games, num, seed), beta, rounds)["kl_to_nash"]
            bound = kl[0] * (1 + 2 * beta) ** -torch.arange(rounds + 1.0, dtype=kl.dtype)[:, None]
            worst = max(worst, (kl / bound)[1:][bound[1:] > _DIGITS].max().item())
        figures[f"ratio_at_beta_{beta:g}"] = worst
    return {"worst": max(figures.values()), **figures}


def growth(
    metric: str, betas: Sequence[float], actions: Sequence[int], games: int, seed: int
) -> Figures:
    """A metric of Nash-MP times (1 + 2β)^(N/2): how it grows as the rounds are doubled.

    `growth` is the largest over the last sixth of the rounds, over the largest up to half of them:
    1 or less where the rate is as claimed, at most 2 where a factor linear in the rounds is added.
    `slowest` is the exponent that is reached from the middle to the end, as a share of N/2.
    """
    figures: Figures = {"growth": 0.0, "slowest": math.inf}
    for beta in betas:
        for num in actions:
            rounds = rounds_of(beta, 10**9)
            found = measured(random_games(games, num, seed), beta, rounds)[metric]
            factor = (1 + 2 * beta) ** torch.arange(rounds + 1.0, dtype=found.dtype)[:, None]
            scaled, half = found * factor / found[0], rounds // 2
            late = scaled[-rounds // 6 :].amax(0) / scaled[: half + 1].amax(0)
            reached = (found[half] / found[-1].clamp_min(1e-300)).log()
            share = reached.min().item() / ((rounds - half) * math.log1p(2 * beta))
            figures[f"growth_at_beta_{beta:g}_of_{num}"] = late.max().item()
            figures["growth"] = max(figures["growth"], late.max().item())
            figures["slowest"] = min(figures["slowest"], share)
    return figures


def action_counts(
    beta: float, actions: Sequence[int], games: int, seed: int, rounds: int
) -> Figures:
    """Nash-MP with ever more actions: KL over its bound on random games, and clones of ten actions.

    With clones of ten actions, equally many each, the exploitability should not depend on their
    number at all: `clones_differ` is the largest relative difference while it is above 1e-11.
    """
    curves, figures = [], {}
    for num in actions:
        kl = measured(random_games(games, num, seed), beta, rounds)["kl_to_nash"]
        bound = kl[0] * (1 + 2 * beta) ** -torch.arange(rounds + 1.0, dtype=kl.dtype)[:, None]
        figures[f"ratio_of_{num}"] = (kl / bound)[1:][bound[1:] > _DIGITS].max().item()
        # All mass of mu on unlike classes, the same for each number of clones.
        weight = torch.arange(1, 11, dtype=torch.float64).repeat_interleave(num // 10)
        clones = Game(cyclic_blocks(num), (weight / weight.sum()).log()[None])
        curves.append(measured(clones, beta, rounds)["exploitability"])
    worst = max(figures.values())
    first = curves[0].clamp_min(_DIGITS)
    differ = max(
        ((curve.clamp_min(_DIGITS) - first).abs() / first).max().item() for curve in curves
    )
    return {"worst": worst, "clones_differ": differ, **figures}


def nash_md_bound(
    betas: Sequence[float], actions: int, games: int, seed: int, rounds: int
) -> Figures:
    """KL(π* ‖ π) of Nash-MD with the paper's step over 8 / (β² (T + 1)): the largest ratio.

    `last` is that ratio after the last round, and `exponent` the power of T by which the KL falls
    from a tenth of the rounds to the end, the slowest of the games.
    """
    figures: Figures = {"worst": 0.0, "last": 0.0, "exponent": math.inf}
    for beta in betas:
        game = random_games(games, actions, seed)
        nash = regularised_nash(game.table, game.log_mu, beta).log_policy
        _, policies = trajectory(NashMD(), game, beta, rounds)
        kl = kl_to_nash(nash, policies)[1:]
        number = torch.arange(1.0, rounds + 1, dtype=kl.dtype)[:, None]
        ratio = kl * beta**2 * (number + 1) / 8
        slope = (kl[rounds // 10] / kl[-1]).log() / math.log(rounds / (rounds // 10 + 1))
        figures["worst"] = max(figures["worst"], ratio.max().item())
        figures["last"] = max(figures["last"], ratio[-1].max().item())
        figures["exponent"] = min(figures["exponent"], slope.min().item())
    return figures


def nash_md_floor(
    beta: float, etas: Sequence[float], actions: int, games: int, seed: int, rounds: int
) -> Figures:
    """Where Nash-MD with a constant step ends: the KL(π* ‖ π) that is left, by η.

    `exponent` is the slope of log KL against log η, the mean over the games; `moved` the largest
    relative change of the KL over the last tenth of the rounds.
    """
    game = random_games(games, actions, seed)
    nash = regularised_nash(game.table, game.log_mu, beta).log_policy
    floors, moved = [], 0.0
    figures: Figures = {}
    for eta in etas:
        kept = torch.cat([policies[-1:] for _, policies in chunks(NashMD(eta), game, beta, rounds)])
        kl = kl_to_nash(nash, kept)
        moved = max(moved, (kl[-1] / kl[-2 - len(kl) // 10] - 1).abs().max().item())
        floors.append(kl[-1].log())
        figures[f"kl_at_eta_{eta:g}"] = kl[-1].median().item()
    x = torch.tensor(etas, dtype=torch.float64).log()
    y = torch.stack(floors)
    slope = ((x - x.mean())[:, None] * y).sum(0) / (x - x.mean()).square().sum()
    return {"exponent": slope.mean().item(), "moved": moved, **figures}


def proximal_point(
    beta: float,
    inner_rounds: int,
    actions: int,
    games: int,
    seed: int,
    outer_rounds: int,
    gap: float,
) -> Figures:
    """Nash Prox with inner rounds that are all but exact, over (1 + η)^-k at its outer rounds.

    `worst` is the largest KL(π* ‖ π) over that bound, at η = 2β; `queries` the median queries until
    the duality gap is below a target, and `queries_of_two` that of two inner rounds, which are
    Nash-MP.
    """
    game = random_games(games, actions, seed)
    nash = regularised_nash(game.table, game.log_mu, beta).log_policy
    exact = NashProx(inner_rounds=inner_rounds)
    _, policies = trajectory(exact, game, beta, inner_rounds * outer_rounds)
    kl = kl_to_nash(nash, policies[::inner_rounds])
    bound = kl[0] * (1 + 2 * beta) ** -torch.arange(len(kl), dtype=kl.dtype)[:, None]
    counted = [
        queries_to(NashProx(inner_rounds=num), game, beta, gap, 100_000).median().item()
        for num in (inner_rounds, 2)
    ]
    return {
        "worst": (kl / bound)[1:][bound[1:] > _DIGITS].max().item(),
        "queries": counted[0],
        "queries_of_two": counted[1],
    }


def late(
    method: Mapping[str, Any], beta: float, games: int, actions: int, seed: int, rounds: int
) -> Figures:
    """The exploitability of a method on random games over the last quarter of its rounds.

    `most` and `least` over games and rounds, and `swing` the largest range of a game; `start` is
    the mean of the reference.
    """
    game = random_games(games, actions, seed)
    kept = [game.gap(p, beta) / 2 for _, p in chunks(named(**method), game, beta, rounds)]
    end = torch.cat(kept)[-rounds // 4 :]
    return {
        "most": end.max().item(),
        "least": end.min().item(),
        "swing": (end.amax(0) - end.amin(0)).max().item(),
        "start": (game.gap(game.log_mu, beta) / 2).mean().item(),
    }


def reached(
    method: str, games: int, actions: int, seed: int, betas: Sequence[float], rounds: int
) -> Figures:
    """The largest duality gap that a method leaves on random games, at its default step."""
    game = random_games(games, actions, seed)
    gaps = {
        f"gap_at_beta_{beta:g}": game.gap(last(named(method), game, beta, rounds), beta)
        .max()
        .item()
        for beta in betas
    }
    return {"worst": max(gaps.values()), **gaps}
