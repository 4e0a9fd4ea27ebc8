"""Preference models fitted to the same votes, and what becomes of policies under the true oracle.

Policies are the equilibria of the regularised game of a fitted model, which is what trained them.
The true preference, which only drew the votes, is the held-out oracle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nlhf_zoo.data.tables.games import complete
from nlhf_zoo.solvers import regularised_nash, win_rate
from reproductions.ledger import Figures
from reproductions.play import Game, cycles, random_games

_Z = 2.576


def votes(table: Tensor, number: int, rng: torch.Generator) -> Tensor:
    """How often y won against y' [C, N, N], of so many random pairs of different responses."""
    num_games, num = table.shape[:2]
    first = torch.randint(num, (num_games, number), generator=rng)
    second = (first + torch.randint(1, num, first.shape, generator=rng)) % num
    rows = torch.arange(num_games)[:, None].expand_as(first)
    won = torch.rand(first.shape, generator=rng, dtype=table.dtype) < table[rows, first, second]
    better, worse = torch.where(won, first, second), torch.where(won, second, first)
    wins = torch.zeros_like(table)
    return wins.index_put_((rows, better, worse), torch.ones_like(won, dtype=table.dtype), True)


def fitted(wins: Tensor, dimension: int, ridge: float, rng: torch.Generator) -> Tensor:
    """P(y > y') [C, N, N] of the model that fits the votes best.

    Log odds are r - r' for a dimension of 1, the Bradley-Terry model, and v^T R v' for an even one,
    the general preference model. Half of ``ridge`` times the squared parameters is added to the
    negative log-likelihood, which L-BFGS minimises from one random start.
    """
    values = torch.randn(*wins.shape[:2], dimension, generator=rng, dtype=wins.dtype)
    values.requires_grad_()
    turn = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * (dimension // 2))
    optimizer = torch.optim.LBFGS([values], max_iter=300, line_search_fn="strong_wolfe")

    def odds() -> Tensor:
        if dimension == 1:
            return values - values.mT
        return values @ turn.to(values) @ values.mT

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * ridge * values.square().sum() - (wins * logsigmoid(odds())).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return complete(torch.sigmoid(odds()))


def _trained(
    true: Game, wins: Tensor, dimension: int, ridge: float, beta: float, seed: int
) -> Tensor:
    """The equilibrium under a fitted model [C, N]."""
    model = fitted(wins, dimension, ridge, torch.Generator().manual_seed(seed))
    return regularised_nash(model, true.log_mu, beta).log_policy


def _interval(values: Tensor, name: str) -> Figures:
    """A mean with the ends of its interval of 99 %."""
    mean, half = values.mean().item(), _Z * (values.std() / math.sqrt(len(values))).item()
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def general_against_rewards(
    cyclic: bool,
    beta: float,
    number: int,
    dimension: int,
    ridges: Sequence[float],
    games: int,
    tuning_games: int,
    actions: int,
    seed: int,
) -> Figures:
    """Policies by a general preference model and by a Bradley-Terry model of the same votes.

    `number` votes a game; each model with the ridge that leaves least exploitability on other
    games. `win` is the win rate of the first policy against the second, `less` how much less
    exploitable it is, each under the true preference and with its 99 % interval over the games;
    `general`, `rewards` and `start` are exploitabilities of both and of the reference.
    """

    def made(number_of_games: int, at: int) -> Game:
        if cyclic:
            return cycles(actions, 0.9, number_of_games, at)
        return random_games(number_of_games, actions, at)

    game, tuning = made(games, seed), made(tuning_games, seed + 1)
    asked = {
        id(on): votes(on.table, number, torch.Generator().manual_seed(seed + 2 + at))
        for at, on in enumerate((game, tuning))
    }
    ends, figures = [], {}
    for name, size in (("general", dimension), ("rewards", 1)):

        def left(ridge: float, on: Game, size: int = size) -> Tensor:
            return _trained(on, asked[id(on)], size, ridge, beta, seed)

        ridge = min(ridges, key=lambda r: tuning.gap(left(r, tuning), beta).mean().item())
        ends.append(left(ridge, game))
        figures[name] = (game.gap(ends[-1], beta) / 2).mean().item()
        figures[f"ridge_{name}"] = ridge
    less = (game.gap(ends[1], beta) - game.gap(ends[0], beta)) / 2
    return {
        **_interval(win_rate(game.table, ends[0], ends[1]), "win"),
        **_interval(less, "less"),
        **figures,
        "start": (game.gap(game.log_mu, beta) / 2).mean().item(),
        "votes": float(number),
    }


def lengths(
    bias: float,
    betas: Sequence[float],
    number: int,
    dimension: int,
    ridge: float,
    games: int,
    actions: int,
    seed: int,
) -> Figures:
    """Policies by models of votes that like length, under the same preference without length.

    Log odds of a vote are an antisymmetric matrix of standard normal entries, and `bias` times the
    difference of the lengths, which are standardised and have nothing to do with it; the held-out
    oracle leaves the second part out. The reference is uniform. The general preference model's
    equilibria at the `betas`, from large to small, are a training that goes on: `longer` is the
    mean length at the last beta, `raw` the win rate against the reference by the oracle of the
    votes at the last beta less that at the first, and `held_out` the same by the held-out oracle.
    `further` is by how much a reward's policy mu exp(r / beta'), fitted to the same votes, is
    longer than the equilibrium at the last beta, beta' such that their KL to mu is the same;
    `less_held_out` is how much less it wins there by the held-out oracle. Each has its 99 %
    interval over the games.
    """
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(games, actions, actions, generator=rng, dtype=torch.float64)
    quality = noise.triu(1) - noise.triu(1).mT
    length = torch.randn(games, actions, generator=rng, dtype=torch.float64)
    length = (length - length.mean(-1, True)) / length.std(-1, correction=0, keepdim=True)
    true = complete(torch.sigmoid(quality))
    voted = complete(torch.sigmoid(quality + bias * (length[:, :, None] - length[:, None])))
    wins = votes(voted, number, rng)
    log_mu = torch.full_like(length, -math.log(actions))
    game = Game(voted, log_mu)
    ends = [_trained(game, wins, dimension, ridge, beta, seed) for beta in betas]

    def against_start(table: Tensor, log_policy: Tensor) -> Tensor:
        return win_rate(table, log_policy, log_mu)

    def mean_length(log_policy: Tensor) -> Tensor:
        return (log_policy.exp() * length).sum(-1)

    reward = fitted(wins, 1, ridge, torch.Generator().manual_seed(seed))
    rlhf = _tilted(log_mu, reward.logit()[:, :, 0], _kl(ends[-1], log_mu))
    return {
        **_interval(mean_length(ends[-1]), "longer"),
        **_interval(against_start(voted, ends[-1]) - against_start(voted, ends[0]), "raw"),
        **_interval(against_start(true, ends[-1]) - against_start(true, ends[0]), "held_out"),
        **_interval(mean_length(rlhf) - mean_length(ends[-1]), "further"),
        **_interval(against_start(true, ends[-1]) - against_start(true, rlhf), "less_held_out"),
        "kl": _kl(ends[-1], log_mu).mean().item(),
        "held_out_win": against_start(true, ends[-1]).mean().item(),
        "votes": float(number),
    }


def _kl(log_policy: Tensor, log_mu: Tensor) -> Tensor:
    return (log_policy.exp() * (log_policy - log_mu)).sum(-1)


def _tilted(log_mu: Tensor, reward: Tensor, kl: Tensor) -> Tensor:
    """Mu exp(r / beta) [C, N] of given KL to mu [C], by bisection of log(1 / beta)."""
    low, high = torch.full_like(kl, -10.0), torch.full_like(kl, 10.0)
    for _ in range(60):
        middle = (low + high) / 2
        policy = (log_mu + reward * middle.exp()[:, None]).log_softmax(-1)
        more = _kl(policy, log_mu) > kl
        low, high = torch.where(more, low, middle), torch.where(more, middle, high)
    return policy
