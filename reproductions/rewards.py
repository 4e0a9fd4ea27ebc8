"""What a reward can say of a preference, and what it cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.adaptive import references
from nlhf_zoo.algorithms import OnlineDPO, OnlineIPO
from nlhf_zoo.algorithms.surrogates import ipo_regression
from nlhf_zoo.data.tables.games import annotators, bradley_terry, complete
from nlhf_zoo.losses import policy_gradient
from nlhf_zoo.records import Batch
from nlhf_zoo.solvers import exploitability, regularised_nash
from reproductions.ledger import Figures
from reproductions.play import cycles, random_games


def bradley_terry_rewards(table: Tensor, weight: Tensor) -> Tensor:
    """The rewards of greatest likelihood [C, N], which sum to 0.

    Newton's method on the cross-entropy of sigma(r - r') to P(y > y').

    Args:
        table: P(y > y') [C, N, N].
        weight: how often a pair is compared [C, N, N], symmetric.
    """
    reward = torch.zeros(table.shape[:2], dtype=torch.float64)
    for _ in range(60):
        model = torch.sigmoid(reward[:, :, None] - reward[:, None, :])
        gradient = (weight * (table - model)).sum(-1)
        curvature = weight * model * (1 - model)
        hessian = torch.diag_embed(curvature.sum(-1)) - curvature + 1 / table.shape[-1]
        reward = reward + torch.linalg.solve(hessian, gradient)
    if not gradient.abs().max() < 1e-9:
        raise RuntimeError("the rewards of greatest likelihood were not found")
    return reward


def bradley_terry_policy(
    table: Tensor, log_mu: Tensor, beta: float, weight: Tensor | None = None
) -> Tensor:
    """The policy of RLHF [C, N]: mu exp(r / beta), with pairs of all responses equally often."""
    weight = torch.ones_like(table) if weight is None else weight
    return (log_mu + bradley_terry_rewards(table, weight) / beta).log_softmax(-1)


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Total variation of log-policies [..., N]."""
    return 0.5 * (first.exp() - second.exp()).abs().sum(-1)


def moves(beta: float, pairs: int, actions: int, crowd: int, steps: int, seed: int) -> Figures:
    """Two crowds of annotators, mixed in shares from 0 to 1: how fast do the two policies move?

    That of a reward model, mu exp(r / beta), and the equilibrium at the same β, from a uniform
    reference. A move is the largest total variation between two shares that follow each other, over
    the same at half of the distance between shares: 2 where it is continuous, 1 where it jumps.
    `steeper` is the median over pairs of crowds of how much further the reward model's policy moves
    in its largest step than the equilibrium in its own; the ends are of a 99 % interval for it.
    """
    ratios, halving = [], {"reward": 0.0, "nash": 0.0}
    for number in range(pairs):
        one, other = (annotators(actions, crowd, None, seed + 2 * number + i) for i in range(2))
        largest = {}
        for grid in (steps, 2 * steps):
            share = torch.linspace(0, 1, grid + 1, dtype=torch.float64)[:, None, None]
            table = complete(((1 - share) * one + share * other).contiguous())
            log_mu = torch.full((grid + 1, actions), -math.log(actions), dtype=torch.float64)
            policies = {
                "reward": bradley_terry_policy(table, log_mu, beta),
                "nash": regularised_nash(table, log_mu, beta).log_policy,
            }
            for who, policy in policies.items():
                largest[who, grid] = distance(policy[1:], policy[:-1]).max().item()
        for who in halving:
            halving[who] += largest[who, steps] / largest[who, 2 * steps] / pairs
        ratios.append(largest["reward", 2 * steps] / largest["nash", 2 * steps])
    low, high = median_interval(torch.tensor(ratios, dtype=torch.float64))
    return {
        "steeper": torch.tensor(ratios).median().item(),
        "steeper_low": low,
        "steeper_high": high,
        "reward_halves": halving["reward"],
        "nash_halves": halving["nash"],
    }


def median_interval(values: Tensor, confidence: float = 0.99) -> tuple[float, float]:
    """An interval for the median, of order statistics, which hold it at least that often."""
    from scipy.stats import binom

    ordered = values.sort().values
    below = int(binom.ppf((1 - confidence) / 2, len(values), 0.5))
    if below < 1 or binom.cdf(below - 1, len(values), 0.5) > (1 - confidence) / 2:
        return -math.inf, math.inf
    return ordered[below - 1].item(), ordered[len(values) - below].item()


def sampling(beta: float, games: int, actions: int, seed: int) -> Figures:
    """Rewards fitted to pairs of equal frequency, and to pairs of a skewed law: how far apart?

    The same preference, asked about for pairs of two laws of responses; `moved` is the median total
    variation between the two policies mu exp(r / beta), and `moved_transitive` the same where a
    reward explains the preference. A table of preferences that is fitted to either is the same.
    """
    log_mu = torch.full((games, actions), -math.log(actions), dtype=torch.float64)
    skewed = references(log_mu[..., None].expand(-1, -1, actions), seed).exp()
    weight = skewed[:, :, None] * skewed[:, None, :]
    found = {}
    for name, table in (
        ("moved", complete(torch.rand(games, actions, actions, generator=_rng(seed)).double())),
        ("moved_transitive", bradley_terry(games, actions, seed)),
    ):
        both = (bradley_terry_policy(table, log_mu, beta, w) for w in (None, weight))
        found[name] = distance(*both).median().item()
    return found


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def online_dpo(beta: float, actions: int, games: int, seed: int, steps: int, lr: float) -> Figures:
    """Online DPO on cycles, by gradient steps on its loss over all pairs: what it ends with.

    `left` is the exploitability as a share of the reference's, the mean over references, and
    `left_least` the least; `moved` the largest total variation over the last half of the steps,
    which says whether it has arrived.
    """
    game, algorithm = cycles(actions, 0.9, games, seed), OnlineDPO()
    (step,) = algorithm.steps(beta, 0)
    logits = game.log_mu.clone().requires_grad_()
    for number in range(steps):
        if number == steps // 2:
            halfway = logits.detach().log_softmax(-1)
        log_prob = logits.log_softmax(-1)
        weight = log_prob.detach().exp()
        batch = Batch(
            log_prob=log_prob,
            centre_log_prob=game.log_mu,
            reference_log_prob=game.log_mu,
            payoff=(game.table @ weight[..., None])[..., 0],
            weight=weight,
            beta=beta,
            enumerated=True,
            self_play=True,
            preference=game.table,
            pair_weight=weight[:, :, None] * weight[:, None],
        )
        (gradient,) = torch.autograd.grad(algorithm.loss(step, batch).sum(), logits)
        logits.data -= lr * gradient
    end = logits.detach().log_softmax(-1)
    left = exploitability(game.table, end, game.log_mu, beta)
    left = left / exploitability(game.table, game.log_mu, game.log_mu, beta)
    return {
        "left": left.mean().item(),
        "left_least": left.min().item(),
        "moved": distance(end, halfway).max().item(),
    }


def ipo_is_self_play(beta: float, games: int, actions: int, seed: int) -> Figures:
    """The population gradient of online IPO's loss beside that of self-play, on random policies.

    `differ` is the largest angle, as one minus the cosine, between it and the policy gradient of
    the regularised game in self-play; `at_nash` the largest entry at the equilibrium.
    """
    game = random_games(games, actions, seed)
    nash = regularised_nash(game.table, game.log_mu, beta).log_policy
    somewhere = references(game.table, seed + 1)
    (step,) = OnlineIPO().steps(beta, 0)

    def gradients(log_policy: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for which in ("ipo", "self-play"):
            logits = log_policy.clone().requires_grad_()
            log_prob = logits.log_softmax(-1)
            weight = log_prob.detach().exp()
            payoff = (game.table @ weight[..., None])[..., 0]
            if which == "ipo":
                batch = Batch(log_prob, game.log_mu, game.log_mu, payoff, weight, beta, True, True)
                loss = ipo_regression(step, batch)
            else:
                value = payoff - beta * (log_prob.detach() - game.log_mu)
                loss = policy_gradient(log_prob, value, weight, True)
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
            found.append(gradient)
        return found[0], found[1]

    one, other = gradients(somewhere)
    cosine = torch.cosine_similarity(one, other, dim=-1)
    return {"differ": (1 - cosine).max().item(), "at_nash": gradients(nash)[0].abs().max().item()}


def cyclic_models(actions: Sequence[int], strength: float, dimension: int) -> Figures:
    """Preference models fitted to whole cycles: shares of pairs whose winner they know.

    The rewards of greatest likelihood, and embeddings v by the general preference model's form, log
    odds v^T R v', by L-BFGS from a random start. On a cycle a tie of rewards is no knowledge:
    `bradley_terry` counts such pairs as halves.
    """
    figures: Figures = {"general": 1.0, "bradley_terry": 0.0}
    for num in actions:
        table = cycles(num, strength, 1, 0).table[0]
        other = ~torch.eye(num, dtype=torch.bool)
        truth = (table > 0.5).double()
        reward = bradley_terry_rewards(table[None], torch.ones_like(table)[None])[0]
        ahead = reward[:, None] - reward
        said = torch.where(ahead.abs() < 1e-9, 0.5, (ahead > 0).double())
        knows = 1 - (said - truth)[other].abs().mean().item()
        figures[f"bradley_terry_of_{num}"] = knows
        figures["bradley_terry"] = max(figures["bradley_terry"], knows)
        general = 1 - ((_embedded(table, dimension) > 0).double() - truth)[other].abs().mean()
        figures[f"general_of_{num}"] = general.item()
        figures["general"] = min(figures["general"], general.item())
    return figures


def _embedded(table: Tensor, dimension: int) -> Tensor:
    """Log odds [N, N] of the general preference model that fits best, from one random start."""
    num = len(table)
    embedding = torch.randn(num, dimension, generator=_rng(0), dtype=torch.float64)
    embedding.requires_grad_()
    turn = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * (dimension // 2)).double()
    optimizer = torch.optim.LBFGS([embedding], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        odds = embedding @ turn @ embedding.T
        loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, table)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return torch.as_tensor(embedding @ turn @ embedding.T)
