"""How far training on the best and the worst of K goes from the equilibrium: exactly, on a table.

    python docs/figures/best_worst.py

For each K the fixed point of online IPO's loss (IPO 2) on the pair that `rollout.pairs: best_worst`
chooses, over all draws of K responses, on the ten random games of ten actions of the other figures;
K = 2 is a pair of independent responses. Prints the exploitability, mean and worst over the games.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import combinations_with_replacement
from math import factorial, prod

import torch
from torch import Tensor

from nlhf_zoo.game.best_worst import BestWorst
from nlhf_zoo.oracles import MatrixOracle, UniformRandom
from nlhf_zoo.policies import NormalReference
from nlhf_zoo.records import Prompts, Responses
from nlhf_zoo.solvers import exploitability

BETA, SEED = 0.1, 0
GAMES, ACTIONS = 10, 10
ROUNDS, STEP = 2000, 0.05


def choice(P: Tensor, num: int) -> Callable[[Tensor], Tensor]:
    """How likely each pair of actions is chosen: log-policies [C, N] -> [C, N, N], symmetric."""
    groups = [*combinations_with_replacement(range(ACTIONS), num)]
    actions = torch.tensor(groups)
    ways = torch.tensor(
        [factorial(num) / prod(map(factorial, Counter(group).values())) for group in groups]
    ).double()
    tokens = actions[:, :, None]
    drawn = Responses(tokens, tokens >= 0, torch.full(actions.shape, 1 / num))
    prompts = Prompts(torch.zeros(len(groups), dtype=torch.long))
    places = []
    for game in P:
        found, _ = BestWorst(num).ask(MatrixOracle(game[None]), prompts, drawn)
        best, worst = found.valid.nonzero()[:, 1:].view(-1, 2, 2)[:, 0].unbind(-1)
        rows = torch.arange(len(groups))
        places.append(actions[rows, best] * ACTIONS + actions[rows, worst])
    where = torch.stack(places)

    def weights(log_policy: Tensor) -> Tensor:
        chance = log_policy[:, actions].sum(-1).exp() * ways
        weight = torch.zeros(len(P), ACTIONS**2, dtype=P.dtype).scatter_add(1, where, chance)
        weight = weight.view(-1, ACTIONS, ACTIONS)
        return (weight + weight.mT) / 2

    return weights


def solved(weight: Tensor, gradient: Tensor) -> Tensor:
    """X [C, N] of sum_l w_kl (x_k - x_l) = g_k, whose first entry is 0."""
    laplacian = torch.diag_embed(weight.sum(-1)) - weight
    rest = torch.linalg.solve(laplacian[:, 1:, 1:], gradient[:, 1:])
    return torch.cat([torch.zeros_like(rest[:, :1]), rest], -1)


def least(weight: Tensor, P: Tensor) -> Tensor:
    """log(pi/mu) where the regression of its differences on (P - 1/2) / beta is least [C, N]."""
    return solved(weight, (weight * (P - 0.5)).sum(-1) / BETA)


def fixed_point(P: Tensor, log_mu: Tensor, num: int) -> tuple[Tensor, float]:
    """The log-policies that damped steps go to, and how far they would still go from there."""
    weights, ratio = choice(P, num), torch.zeros_like(log_mu)
    for _ in range(ROUNDS):
        to_go = least(weights((log_mu + ratio).log_softmax(-1)), P) - (ratio - ratio[:, :1])
        ratio = ratio + STEP * to_go
    return (log_mu + ratio).log_softmax(-1), float(to_go.abs().max())


def main() -> None:
    """Print it."""
    P = UniformRandom(GAMES, ACTIONS, seed=SEED).table
    torch.manual_seed(SEED)
    log_mu = NormalReference().log_prob(torch.ones(GAMES, ACTIONS, dtype=torch.bool)).double()

    def said(log_policy: Tensor) -> str:
        found = exploitability(P, log_policy, log_mu, BETA)
        return f"{found.mean():.2e} (worst {found.max():.2e})"

    print(f"reference: {said(log_mu)}")
    for num in (2, 3, 4, 6, 8):
        policy, to_go = fixed_point(P, log_mu, num)
        print(f"best and worst of {num}: {said(policy)}, {to_go:.0e} to go", flush=True)


if __name__ == "__main__":
    main()
