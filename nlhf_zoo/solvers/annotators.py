r"""The policy for the worst served of several annotators, and its certificate.

Letters: M annotators, C games, N actions. Annotator j has the margins :math:`A_j = P_j - 1/2`. The
learner picks :math:`\pi`, and its adversary an annotator and an opponent together, with joint
probabilities :math:`q(j, y)`:

.. math:: \min_\pi \max_q \; \sum_j q_j^T A_j \pi + \beta KL(\pi \| \mu)
          - \beta KL(q \| \nu \otimes \mu), \qquad \nu = 1 / M

Each annotator's part, maximised over its opponent, is the exploitability :math:`e_j(\pi)` in that
annotator's own game, so that the learner minimises

.. math:: U(\pi) = \max_j e_j(\pi) \;\; (\beta = 0), \qquad
          U(\pi) = \beta \log \tfrac1M \sum_j e^{e_j(\pi) / \beta} \;\; (\beta > 0),

and annotators have the weights :math:`w_j = \sum_y q(j, y) \propto e^{e_j(\pi) / \beta}`: the
adversary of maximum entropy, in closed form. As beta falls it asks the worst served one alone. With
M = 1 it is the game of the package, and U the exploitability.

A maximum over annotators is not antisymmetric: this is a game of two different players, and no
preference oracle. Its solution at beta = 0 is a Blackwell winner, and the regularised one is after
the maximum entropy Blackwell winner of arXiv 2602.19041; one temperature for both players, and
annotators and opponents regularised together, are our reading of it.

**Certificate.** Against :math:`\pi` the adversary's best response reaches U; against q the
learner's best response is held to

.. math:: L(q) = -\beta \log E_\mu e^{-\sum_j A_j^T q_j / \beta} - \beta KL(q \| \nu \otimes \mu),

and L(q) <= min U <= U. Their distance is beta times the divergences of both from their best
responses, which keeps its digits where it is small.

**Method.** At beta = 0 a linear programme, whose dual is q. Else extragradient steps of both
players, s = 2 / (c + 2 beta) with c = 2 max |A|: the divergence of the solution from them falls by
the factor 1 + 2 beta / c each time, as in the game of one annotator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers.game import antisymmetric, exploitability, kl, normalise

_GOAL = 1e-20  # of gap / beta
_LOOK = 20  # steps between two looks at the gap


@dataclass(frozen=True, slots=True, eq=False)
class WorstCase:
    """A policy for the worst served of M annotators.

    Args:
        log_policy: log pi [C, N] in float64; -inf for actions that it never plays.
        weights: of the annotators, by the adversary [C, M].
        exploitability: of the policy, in the game of each annotator [C, M].
        value: U, what the learner minimises [C].
        gap: U - L [C], at least what another policy could still gain; a certificate by best
            responses of both sides.
        iterations: steps taken, the most over the games.
    """

    log_policy: Tensor
    weights: Tensor
    exploitability: Tensor
    value: Tensor
    gap: Tensor
    iterations: int


def worst_case(P: Tensor, log_reference: Tensor, beta: float) -> WorstCase:
    """The policy for the worst served of several annotators.

    Args:
        P: preferences or payoffs of each annotator [M, C, N, N].
        log_reference: log mu [C, N], -inf where an action does not exist.
        beta: temperature of both players; 0 is without regularisation, where it is one of several
            such policies if there are several.

    Raises:
        UserError: the linear programme does not end.
    """
    tables, reference = antisymmetric(P), normalise(log_reference)
    games = []
    for table, prior in zip(tables.unbind(1), reference, strict=True):
        exists = prior > -torch.inf
        games.append(_solved(table[:, exists][:, :, exists], prior[exists], beta))
    log_policy = torch.full_like(reference, -torch.inf)
    log_policy[reference > -torch.inf] = torch.cat([game.log_policy for game in games])
    return WorstCase(
        log_policy,
        torch.stack([game.log_joint.logsumexp(-1).exp() for game in games]),
        torch.stack([exploitability(each, log_policy, reference, beta) for each in P], -1),
        torch.tensor([game.value for game in games], dtype=torch.float64),
        torch.tensor([game.gap for game in games], dtype=torch.float64),
        max(game.iterations for game in games),
    )


@dataclass(frozen=True, slots=True)
class _Solved:
    """One game."""

    log_policy: Tensor  # [N]
    log_joint: Tensor  # log q [M, N]
    value: float
    gap: float
    iterations: int


def _solved(table: Tensor, prior: Tensor, beta: float) -> _Solved:
    """One game of tables [M, N, N] whose actions all exist."""
    shape = table.shape[:2]
    payoff = table.reshape(-1, shape[1])  # K [M N, N]: what an opponent gets of each action
    joint = (prior - math.log(shape[0])).expand(shape).reshape(-1)
    if beta == 0:
        return _programme(payoff, shape)
    largest = 2 * table.abs().max().item()
    size = 2 / (largest + 2 * beta)
    budget = math.ceil(math.log(1e3 / (beta * _GOAL)) / math.log1p(2 * beta / max(largest, 1e-9)))
    log_policy, log_joint, gap = prior, joint, math.inf

    def step(of: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """From where the round began, against what ``of`` plays."""
        learner = prior - payoff.mT @ of[1].exp() / beta
        adversary = joint + payoff @ of[0].exp() / beta
        share = size * beta
        return (
            torch.lerp(log_policy, learner, share).log_softmax(-1),
            torch.lerp(log_joint, adversary, share).log_softmax(-1),
        )

    for iteration in range(budget + 1):
        if iteration % _LOOK == 0 or iteration == budget:
            learner = (prior - payoff.mT @ log_joint.exp() / beta).log_softmax(-1)
            adversary = (joint + payoff @ log_policy.exp() / beta).log_softmax(-1)
            gap = (kl(log_policy, learner) + kl(log_joint, adversary)).item()
            if gap <= _GOAL:
                break
        if iteration < budget:
            log_policy, log_joint = step(step((log_policy, log_joint)))
    top = torch.logsumexp(joint + payoff @ log_policy.exp() / beta, 0)
    value = beta * (top + kl(log_policy, prior)).item()
    return _Solved(log_policy, log_joint.reshape(shape), value, beta * gap, iteration)


def _programme(payoff: Tensor, shape: torch.Size) -> _Solved:
    """Min t subject to K p <= t, sum p = 1, p >= 0; the dual is the adversary."""
    from scipy.optimize import linprog  # slow to import

    rows, num = payoff.shape
    table = payoff.numpy()
    result = linprog(
        c=np.append(np.zeros(num), 1.0),
        A_ub=np.hstack([table, -np.ones((rows, 1))]),
        b_ub=np.zeros(rows),
        A_eq=np.append(np.ones(num), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * num + [(None, None)],
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if result.status != 0 or result.x is None:
        raise UserError(
            f"the policy for the worst served annotator was not found: {result.message}"
        )
    policy, joint = np.maximum(result.x[:num], 0.0), np.maximum(-result.ineqlin.marginals, 0.0)
    policy, joint = policy / policy.sum(), joint / joint.sum()
    value = float((table @ policy).max())
    log_policy, log_joint = (torch.from_numpy(each).log() for each in (policy, joint))
    gap = value - float((joint @ table).min())
    return _Solved(log_policy, log_joint.reshape(shape), value, gap, int(result.nit))
