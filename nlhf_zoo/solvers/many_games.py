r"""Equilibria of many small games at once, such as those of resampled votes.

The methods are those of `nash` and `lotteries`, a batch of games in the place of one:

- at beta > 0 each game follows its own path of temperatures, and takes Newton steps on it, in one
  batched linear system for all;
- at beta = 0 a lottery that plays the actions B and no others solves :math:`A_{BB} p = 0`. It is
  the only one where that null space is a line, p is positive on it, and no other action even ties
  against it. So the set B that a linear programme has found for one game is tried on all games
  that are left, and only what fits none is given to a programme of its own.

What is not found so is left to the methods for single games: an answer is certified or theirs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlhf_zoo.solvers.game import antisymmetric, exploitability, gain, normalise
from nlhf_zoo.solvers.lotteries import ZERO, maximal_lottery
from nlhf_zoo.solvers.nash import ON_PATH, ROUNDING, SHARES, Solution, regularised_nash

_CERTIFIED = 1e-14  # exploitability / beta up to which a batch's answer is taken
_LARGEST, _LEAST = 8.0, 1.001  # factors between the temperatures of a path


def equilibria(P: Tensor, log_reference: Tensor, beta: float) -> Solution:
    """The equilibria of R games of the same N actions, all of which exist.

    Args:
        P: preferences or payoffs [R, N, N].
        log_reference: log mu [N].
        beta: temperature; 0 is the game without regularisation, where of several equilibria it is
            the one of least KL(pi || mu).

    Returns:
        log-policies [R, N] and certificates [R].

    Raises:
        UserError: rounding hides a maximal lottery.
    """
    reference = normalise(log_reference)
    if beta == 0:
        policy, dimension = _lotteries(antisymmetric(P).numpy(), reference.exp().numpy())
        log_policy = torch.from_numpy(policy).log()
        certificate = exploitability(P, log_policy, reference, 0.0)
        return Solution(log_policy, certificate, 0, torch.from_numpy(dimension))
    log_policy, steps = _regularised(antisymmetric(P), reference, beta)
    certificate = exploitability(P, log_policy, reference, beta)
    rest = ~(certificate <= _CERTIFIED * beta)
    if rest.any():
        alone = regularised_nash(P[rest], reference, beta)
        log_policy[rest], certificate[rest] = alone.log_policy, alone.exploitability
        steps += alone.iterations
    return Solution(log_policy, certificate, steps, torch.zeros(len(P), dtype=torch.long))


def _regularised(table: Tensor, prior: Tensor, beta: float) -> tuple[Tensor, int]:
    """Log-policies [R, N], and steps; where a path got stuck, what was last on it."""
    # The game of payoff A at beta is that of A / c at beta / c.
    scale = (2 * table.abs().amax((1, 2))).clamp_min(1)
    table, goal = table / scale[:, None, None], beta / scale
    payoff = table @ prior.exp()
    solved = 8 * (payoff.amax(1) - payoff.amin(1))  # there, xi = A mu / beta is at most 1/8
    xi, factor = torch.zeros_like(payoff), torch.full_like(solved, _LARGEST)
    on_way, total = torch.ones_like(solved, dtype=torch.bool), 0
    while on_way.any():
        own = on_way.nonzero()[:, 0]
        trial = torch.maximum(goal[own], solved[own] / factor[own])
        last = trial == goal[own]
        aim = torch.where(last, ROUNDING, ON_PATH)
        new, gains, steps = _newton(table[own], prior, trial, xi[own], aim)
        total += int(steps.max())
        there = gains <= ON_PATH
        xi[own] = torch.where(there[:, None], new, xi[own])
        solved[own] = torch.where(there, trial, solved[own])
        longer = torch.where(steps <= 3, (factor[own] ** 1.5).clamp_max(_LARGEST), factor[own])
        factor[own] = torch.where(there, longer, factor[own].sqrt())
        on_way[own] = ~(last & there) & (factor[own] >= _LEAST)
    return normalise(prior + xi), total


def _newton(
    table: Tensor, prior: Tensor, beta: Tensor, xi: Tensor, goal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton steps of each game at its own beta [R]: xi [R, N], gains [R], and steps [R].

    A game ends where its gain is at most its ``goal`` or falls no more.
    """
    shares = table.new_tensor(SHARES)
    xi, gains, policy, payoff = _best(table, prior, beta, xi[:, :, None])
    steps, own = torch.zeros(len(table), dtype=torch.long), (gains > goal).nonzero()[:, 0]
    while len(own):
        steps[own] += 1
        step = _direction(table[own], beta[own], xi[own], policy[own], payoff[own])
        tried = xi[own, :, None] + step[:, :, None] * shares
        new = _best(table[own], prior, beta[own], tried)
        better = new[1] < 0.7 * gains[own]
        own = own[better]
        for each, values in zip((xi, gains, policy, payoff), new, strict=True):
            each[own] = values[better]
        own = own[gains[own] > goal[own]]
    return xi, gains, steps


def _best(
    table: Tensor, prior: Tensor, beta: Tensor, xi: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The least exploitable of S policies log pi = log mu + xi of each game, for xi [R, N, S].

    It gives xi [R, N], exploitability / beta [R], pi and A pi [R, N].
    """
    log_policy = torch.log_softmax(prior[:, None] + xi, 1)
    policy = log_policy.exp()
    payoff = table @ policy
    gains = gain(policy, log_policy, prior[:, None], payoff / beta[:, None, None])
    least, best = gains.nan_to_num(torch.inf).min(1)
    pick = best[:, None, None].expand(-1, table.shape[1], 1)
    xi, policy, payoff = (each.gather(2, pick)[..., 0] for each in (xi, policy, payoff))
    return xi, least, policy, payoff


def _direction(table: Tensor, beta: Tensor, xi: Tensor, policy: Tensor, payoff: Tensor) -> Tensor:
    """Newton's step (beta I - A S)^-1 (A pi - beta xi) of each game [R, N]."""
    system = payoff[:, :, None] * policy[:, None] - table * policy[:, None]
    system.diagonal(dim1=1, dim2=2).add_(beta[:, None])
    residual = payoff - beta[:, None] * xi
    # Without a look at whether each is regular: what fails is no number, and ends its game.
    step: Tensor = torch.linalg.solve_ex(system, residual).result
    return step


def _lotteries(
    tables: NDArray[np.float64], reference: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The maximal lotteries nearest to the reference [R, N], and the dimensions of their sets."""
    tables = np.where(np.abs(tables) > ZERO, tables, 0.0)
    tables, back = np.unique(tables, axis=0, return_inverse=True)  # of few votes many are the same
    lottery = np.zeros(tables.shape[:2])
    dimension = np.zeros(len(tables), dtype=np.int64)
    rest = np.arange(len(tables))
    while len(rest):
        first, rest = rest[0], rest[1:]
        lottery[first], dimension[first], _ = maximal_lottery(tables[first], reference)
        if dimension[first] == 0 and len(rest):
            found, fits = _that_play(tables[rest], lottery[first] > 0)
            lottery[rest[fits]] = found[fits]
            rest = rest[~fits]
    return lottery[back.ravel()], dimension[back.ravel()]


def _that_play(
    tables: NDArray[np.float64], played: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The lottery of each game that plays these actions [R, N], and whether it is the only one."""
    own = tables[:, played][:, :, played]
    _, values, rows = np.linalg.svd(own)
    line = (values > ZERO).sum(1) == own.shape[1] - 1
    null = rows[:, -1]
    total = null.sum(1, keepdims=True)
    found = np.zeros(tables.shape[:2])
    found[:, played] = null / np.where(np.abs(total) > ZERO, total, np.inf)
    others = (tables[:, ~played] @ found[:, :, None])[..., 0]
    return found, line & (found[:, played] > ZERO).all(1) & (others < -ZERO).all(1)
