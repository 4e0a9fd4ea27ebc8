r"""The equilibrium of the game and its certificate: a maximal lottery, or regularised.

The regularised one is exact to rounding. With :math:`\xi = \log \pi - \log \mu` (up to a constant)
it solves :math:`\beta \xi = A \pi`. Newton's step :math:`(\beta I - A S) \delta = A \pi - \beta
\xi`, with :math:`S = diag(\pi) - \pi \pi^T`, always exists, because the eigenvalues of A S are
imaginary. It is to be trusted near the solution only, so the solution is followed from a beta at
which the reference is nearly it down to the beta asked for: every beta on the way takes a few
Newton steps, and the next one is nearer when they did not converge.

Newton's system is solved for the actions of noticeable probability: the columns of the others are 0
to within what the next step corrects. Games too large for that, or in which the path gets stuck,
take extragradient steps, which converge always (arXiv 2503.08942): with s = 2 / (1 + 2 beta),

.. math:: \xi_{k+1/2} = (1 - s \beta) \xi_k + s A \pi_k, \qquad
          \xi_{k+1} = (1 - s \beta) \xi_k + s A \pi_{k+1/2},

and KL(pi* || pi_k) falls at least by the factor 1 + 2 beta each time (arXiv 2505.19731).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers.game import antisymmetric, column, exploitability, gain, normalise
from nlhf_zoo.solvers.lotteries import lottery_intervals, maximal_lottery
from nlhf_zoo.solvers.payoffs import Payoff, PayoffName, bounded_payoff
from nlhf_zoo.solvers.validation import check_beta, check_preference, check_reference

Report = Callable[[float], None]  # takes the share of a game that is done

_MOST_NEWTON_ACTIONS = 3000  # beyond, systems of N equations cost more than extragradient steps
ON_PATH = 1e-6  # exploitability / beta at which the next beta is tried; a laxer path gets lost
ROUNDING = 1e-27  # exploitability / beta that no step improves
SHARES = (1.0, 0.5, 0.25, 0.125)  # of a Newton step, tried together


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """An equilibrium and its certificate.

    Args:
        log_policy: log pi* [..., N] in float64, normalised; -inf for actions that it never plays.
        exploitability: e(pi*) [...], computed from ``log_policy`` itself. A figure that uses pi* is
            as good as this one is small; a solver that stopped early shows it here.
        iterations: steps taken, the most over the games of a batch.
        dimension: of the set of all equilibria, int [...]; 0 where there is one alone, as there
            always is with regularisation.
    """

    log_policy: Tensor
    exploitability: Tensor
    iterations: int
    dimension: Tensor

    @property
    def unique(self) -> Tensor:
        """Whether it is the only equilibrium, bool [...]."""
        return self.dimension == 0


def solve(
    P: Any,
    mu: Any = None,
    beta: float = 0.1,
    progress: bool = False,
    payoff: PayoffName | Payoff = "identity",
    bound: float | None = None,
) -> Solution:
    """The Nash equilibrium of a preference game, with its certificate.

    Args:
        P: preference [N, N] or [C, N, N], array or tensor; P[i, j] is the probability that i is
            preferred to j. P(a > b) + P(b > a) must be 1 within 1e-6, and is then made exactly 1.
        mu: probabilities of the reference policy [N] or [C, N], all above 0; uniform where None.
        beta: temperature of the regularisation towards ``mu``; 0 is the game without it, solved by
            linear programme, where ``mu`` decides between several equilibria.
        progress: whether a solution that takes longer than two seconds shows a progress bar.
        payoff: f of the game's payoff 1/2 + f(P - 1/2): identity, sign, log_odds, or a function
            that is odd and increasing. The certificate is about that game.
        bound: largest |f|; values beyond it are cut to it. log_odds needs one where P is 0 or 1.

    Returns:
        the equilibrium; look at its ``exploitability``, and at beta = 0 whether it is ``unique``.

    Raises:
        UserError: an argument does not describe a game.
    """
    table = bounded_payoff(payoff, bound).of_table(check_preference(P, "P"), "P")
    beta = check_beta(beta, "beta")
    num = table.shape[-1]
    reference = torch.full((num,), 1 / num, dtype=torch.float64)
    if mu is not None:
        reference = check_reference(mu, num, "mu")
    if reference.dim() == 2 and reference.shape[:-1] != table.shape[:-2]:
        raise UserError(
            f"mu has shape {[*reference.shape]} and P {[*table.shape]}: "
            "give one reference, or one for each game"
        )
    if beta == 0:
        return unregularised_nash(table, log_reference=reference.log())
    return regularised_nash(table, reference.log(), beta, progress=progress)


def unregularised_nash(
    P: Tensor, support: Tensor | None = None, log_reference: Tensor | None = None
) -> Solution:
    r"""The Nash equilibrium without regularisation, a "maximal lottery".

    .. math:: (A \pi)(y) \le 0, \; \sum_y \pi(y) = 1, \; \pi \ge 0

    Where there are several, it is the one of least KL(pi || mu), the limit of the regularised
    equilibria as beta falls to 0. Linear programmes may leave the bounds by 1e-10: negative
    probabilities become 0 and the rest is divided by its sum. The certificate max_y (P pi)(y) - 1/2
    is computed after that, so it covers it.

    Args:
        P: preference [..., N, N].
        support: which actions exist, bool [..., N]; all where None.
        log_reference: log mu [..., N], above -inf where an action exists; uniform where None.

    Returns:
        log-policy [..., N] with -inf for actions of probability 0, and its certificate.

    Raises:
        UserError: rounding hides it, for some margins are too small beside others.
    """
    tables = antisymmetric(P).cpu()
    batch, num = tables.shape[:-2], tables.shape[-1]
    if support is None:
        support = torch.ones(tables.shape[:-1], dtype=torch.bool)
    support = support.cpu().expand(*batch, num)
    reference = torch.zeros(num) if log_reference is None else log_reference.cpu()
    reference = reference.double().expand(*batch, num).masked_fill(~support, -torch.inf)
    reference = reference.softmax(-1)
    games = zip(
        *(each.reshape(-1, *each.shape[len(batch) :]) for each in (tables, support, reference)),
        strict=True,
    )
    answers = [
        maximal_lottery(table[exists][:, exists].numpy(), prior[exists].numpy())
        for table, exists, prior in games
    ]
    policy = torch.zeros(support.shape, dtype=torch.float64)
    policy[support] = torch.from_numpy(np.concatenate([lottery for lottery, _, _ in answers]))
    log_policy = policy.log().to(P.device)
    existing = support.double().log().to(P.device)
    certificate = exploitability(P, log_policy, existing, 0.0)
    dimension = torch.tensor([dimension for _, dimension, _ in answers]).reshape(batch)
    return Solution(log_policy, certificate, max(steps for _, _, steps in answers), dimension)


def equilibrium_intervals(
    P: Tensor, solution: Solution, support: Tensor, most: int = 100
) -> tuple[Tensor, Tensor]:
    """The least and the largest probability of each action in any equilibrium, [..., N] each.

    Each takes a linear programme for each action that any equilibrium plays.

    Args:
        P: preference [..., N, N].
        solution: of this game, by `unregularised_nash` or `regularised_nash`.
        support: which actions exist, bool [..., N].
        most: actions of a game up to which they are found; of several equilibria of a larger one
            they are NaN.

    Raises:
        UserError: the linear programmes do not end.
    """
    low = solution.log_policy.exp()
    high = low.clone()
    for game in (solution.dimension > 0).nonzero():
        place = tuple(game)
        exists = support[place]
        low[place] = high[place] = torch.where(exists, torch.nan, 0.0)
        if int(exists.sum()) <= most:
            table = antisymmetric(P[place])[exists][:, exists].cpu().numpy()
            for end, found in zip((low, high), lottery_intervals(table), strict=True):
                end[place][exists] = torch.from_numpy(found).to(end)
    return low, high


def regularised_nash(
    P: Tensor, log_reference: Tensor, beta: float, tolerance: float = 1e-12, progress: bool = False
) -> Solution:
    """The Nash equilibrium of the game at ``beta``.

    Newton's method goes on to rounding, far beyond ``tolerance``: KL(pi* || pi) is about
    exploitability / beta, and who compares such divergences needs pi* better than them.

    Args:
        P: preference [..., N, N].
        log_reference: log mu [..., N], -inf where an action does not exist.
        beta: temperature, above 0.
        tolerance: extragradient steps stop when exploitability / beta is a hundredth of it.
        progress: whether a solution that takes longer than two seconds shows a progress bar.

    Returns:
        log-policy [..., N] and its certificate; compare that with what you need.

    Raises:
        UserError: beta is not above 0.
    """
    if not beta > 0:
        raise UserError(
            f"beta is {beta}, but a regularised game needs it above 0; "
            "the linear programme solves beta = 0"
        )
    batch, num = P.shape[:-2], P.shape[-1]
    reference = normalise(log_reference).expand(*batch, num)
    games = zip(P.reshape(-1, num, num), reference.reshape(-1, num), strict=True)
    goal = tolerance / 100
    shown = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(
        total=batch.numel(),
        desc="equilibrium",
        delay=2,
        leave=False,
        disable=not progress,
        bar_format=shown,
    ) as bar:
        answers = [
            _solve_one(antisymmetric(table), prior, beta, goal, partial(_report, bar, done))
            for done, (table, prior) in enumerate(games)
        ]
    log_policy = torch.stack([answer for answer, _ in answers]).reshape(*batch, num)
    certificate = exploitability(P, log_policy, reference, beta)
    dimension = torch.zeros(batch, dtype=torch.long)
    return Solution(log_policy, certificate, max(steps for _, steps in answers), dimension)


def _report(bar: tqdm[None], done: int, part: float) -> None:
    """Move a bar over games to a part of the one that is being solved."""
    bar.update(done + part - bar.n)


@dataclass(frozen=True, slots=True)
class _Point:
    """A policy in one game at one beta, in columns [N, 1]."""

    xi: Tensor  # log pi - log mu up to a constant
    policy: Tensor  # pi
    payoff: Tensor  # A pi
    gain: float  # exploitability / beta


def _solve_one(
    table: Tensor, log_reference: Tensor, beta: float, goal: float, report: Report
) -> tuple[Tensor, int]:
    """The equilibrium of one game [N] and the steps taken.

    The game of payoff A at beta is that of A / c at beta / c: what is larger than a preference's
    is brought to that size, for which the steps are made.
    """
    prior = column(log_reference)
    if (scale := 2 * table.abs().max().item()) > 1:
        table, beta = table / scale, beta / scale
    point, iterations = _best(table, prior, beta, torch.zeros_like(prior)), 0
    if len(table) <= _MOST_NEWTON_ACTIONS:
        point, iterations = _follow(table, prior, beta, report)
    if point.gain > goal:
        point, steps = _extragradient(table, prior, beta, goal, report)
        iterations += steps
    return normalise(log_reference + point.xi[:, 0]), iterations


def _best(table: Tensor, prior: Tensor, beta: float, xi: Tensor) -> _Point:
    """The least exploitable of the policies log pi = log mu + xi, for xi [N, R]."""
    log_policy = torch.log_softmax(prior + xi, 0)
    policy = log_policy.exp()
    payoff = table @ policy
    gains = gain(policy, log_policy, prior, payoff / beta)
    best = int(gains.nan_to_num(torch.inf).argmin())
    pick = slice(best, best + 1)
    return _Point(xi[:, pick], policy[:, pick], payoff[:, pick], gains[best].item())


def _follow(table: Tensor, prior: Tensor, beta: float, report: Report) -> tuple[_Point, int]:
    """Follow the path of solutions down to ``beta``; a large gain says that it got stuck."""
    payoff = table @ prior.exp()
    solved = 8 * (payoff.amax() - payoff.amin()).item()  # there, xi = A mu / beta is at most 1/8
    start, xi, factor, iterations = max(solved, beta), torch.zeros_like(prior), 8.0, 0
    while True:
        trial = max(beta, solved / factor)
        point, steps = _newton(table, prior, trial, xi, ROUNDING if trial == beta else ON_PATH)
        iterations += steps
        if point.gain > ON_PATH:
            factor = math.sqrt(factor)
        elif trial > beta:
            solved, xi = trial, point.xi
            factor = min(factor**1.5, 8.0) if steps <= 3 else factor
            report(math.log(start / solved) / math.log(start / beta))
        if (trial == beta and point.gain <= ON_PATH) or factor < 1.001:
            return point, iterations


def _newton(
    table: Tensor, prior: Tensor, beta: float, xi: Tensor, goal: float
) -> tuple[_Point, int]:
    """Newton steps at one beta, until the gain is at most ``goal`` or falls no more."""
    point, steps = _best(table, prior, beta, xi), 0
    shares = table.new_tensor(SHARES)
    while point.gain > goal:
        steps += 1
        new = _best(table, prior, beta, point.xi + shares * _direction(table, beta, point))
        if not new.gain < 0.7 * point.gain:
            break
        point = new
    return point, steps


def _direction(table: Tensor, beta: float, point: _Point) -> Tensor:
    """Newton's step [N, 1]; the system is solved on the actions of noticeable probability."""
    residual = point.payoff - beta * point.xi
    played = (point.policy[:, 0] > 1e-3 * beta / len(table)).nonzero()[:, 0]
    policy, payoff = point.policy[played], point.payoff[played]
    system = table[played[:, None], played] * -policy.mT
    system += payoff * policy.mT
    system.diagonal().add_(beta)
    step = torch.linalg.solve(system, residual[played])
    moved = policy * (step - (policy * step).sum())
    change = torch.zeros_like(residual).index_copy_(0, played, moved)
    return (residual.addmm_(table, change) / beta).index_copy_(0, played, step)


def _extragradient(
    table: Tensor, prior: Tensor, beta: float, goal: float, report: Report
) -> tuple[_Point, int]:
    """Extragradient steps from mu, to a gain of ``goal`` or up to the theory's number of them."""
    size = 2 / (1 + 2 * beta)
    budget = math.ceil(math.log(1e3 / (beta * goal)) / math.log1p(2 * beta))
    point = _best(table, prior, beta, torch.zeros_like(prior))
    first = point.gain
    for iteration in range(budget):
        if point.gain <= goal:
            return point, iteration
        half = _best(table, prior, beta, torch.lerp(point.xi, point.payoff / beta, size * beta))
        point = _best(table, prior, beta, torch.lerp(point.xi, half.payoff / beta, size * beta))
        report(math.log(first / max(point.gain, goal)) / math.log(first / goal))
    return point, budget
