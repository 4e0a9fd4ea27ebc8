"""Which pairs of responses a regression is trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from nlhf_zoo.solvers import exploitability, score_interval
from reproductions.ledger import Figures
from reproductions.play import Game, random_games


def best_and_worst(
    beta: float,
    eta: float,
    responses: int,
    tournaments: int,
    games: int,
    actions: int,
    seed: int,
    rounds: int,
) -> Figures:
    """INPO's steps on the best and the worst of some responses, and on two independent ones.

    Each round draws tournaments of independent responses of the policy; winners meet winners and
    losers losers by drawn labels until one of each is left. The step is the exact minimiser of
    INPO's loss on these pairs, or on as many independent pairs, whose answer is the mean label.
    `knockout` and `independent` are the mean exploitabilities over the last quarter of the rounds,
    and `start` that of the reference; `worse` is the share of games on which the knockout is worse,
    with the ends of its 99 % interval.
    """
    game, rng = random_games(games, actions, seed), torch.Generator().manual_seed(seed)
    left = {}
    for name, size in (("knockout", responses), ("independent", 2)):
        ends = []
        for number in range(games):
            one = Game(game.table[number : number + 1], game.log_mu[number : number + 1])
            ends.append(_play(one, beta, eta, size, tournaments, rounds, rng))
        left[name] = torch.stack(ends)
    start = exploitability(game.table, game.log_mu, game.log_mu, beta)
    worse = (left["knockout"] > left["independent"]).double()
    low, high = score_interval(worse.sum().item(), worse.sum().item(), games, 0.99, most=games)
    return {
        "knockout": left["knockout"].mean().item(),
        "independent": left["independent"].mean().item(),
        "start": start.mean().item(),
        "worse": worse.mean().item(),
        "worse_low": low,
        "worse_high": high,
    }


def _play(
    game: Game,
    beta: float,
    eta: float,
    size: int,
    tournaments: int,
    rounds: int,
    rng: torch.Generator,
) -> Tensor:
    """Mean exploitability over the last quarter of the rounds."""
    log_mu, late = game.log_mu.log_softmax(-1)[0], []
    log_policy = log_mu
    for number in range(rounds):
        drawn = torch.multinomial(log_policy.exp(), tournaments * size, True, generator=rng)
        best, worst = _finalists(game.table[0], drawn.view(tournaments, size), rng)
        centre = (1 - eta * beta) * log_policy + eta * beta * log_mu
        log_policy = (centre + _regression(game.table[0], best, worst, eta)).log_softmax(-1)
        if number >= rounds - rounds // 4:
            late.append(exploitability(game.table, log_policy[None], game.log_mu, beta))
    return torch.stack(late).mean()


def _finalists(table: Tensor, drawn: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The best and the worst of each row [M]; of two in a row, these in the order drawn."""
    if drawn.shape[1] == 2:
        return drawn[:, 0], drawn[:, 1]
    winners, losers = _meet(table, drawn, rng)
    while winners.shape[1] > 1:
        winners, losers = _meet(table, winners, rng)[0], _meet(table, losers, rng)[1]
    return winners[:, 0], losers[:, 0]


def _meet(table: Tensor, drawn: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Neighbours meet once: winners and losers [M, K / 2], by drawn labels."""
    first, second = drawn[:, 0::2], drawn[:, 1::2]
    wins = torch.rand(first.shape, generator=rng, dtype=table.dtype) < table[first, second]
    return torch.where(wins, first, second), torch.where(wins, second, first)


def _regression(table: Tensor, one: Tensor, other: Tensor, eta: float) -> Tensor:
    """The minimiser d [N] of sum (d(y) - d(y') - eta (P(y > y') - 1/2))^2 over pairs."""
    num = len(table)
    count = torch.zeros(num, num, dtype=table.dtype)
    count.index_put_((one, other), torch.ones(len(one), dtype=table.dtype), accumulate=True)
    count = (count + count.T).fill_diagonal_(0)
    target = (count * eta * (table - 0.5)).sum(-1)
    laplacian = torch.diag(count.sum(-1)) - count
    solution: Tensor = torch.linalg.lstsq(laplacian, target[:, None], driver="gelsd").solution
    return solution[:, 0]
