"""The equilibrium of the game without regularisation, by linear programme."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.solvers.game import antisymmetric, exploitability
from nlhf_zoo.solvers.solution import Solution


def unregularised_nash(P: Tensor, support: Tensor | None = None) -> Solution:
    r"""A Nash equilibrium without regularisation ("maximal lottery"; it need not be unique).

    .. math:: \min_{\pi, t} \; t \quad \text{s.t.} \quad (A \pi)(y) \le t, \;
              \sum_y \pi(y) = 1, \; \pi \ge 0

    solved by scipy's HiGHS, whose solutions may leave the bounds by its feasibility tolerance
    (1e-10 here): negative probabilities become 0 and the rest is divided by its sum. The
    certificate max_y (P pi)(y) - 1/2 is computed after that, so it covers it.

    Args:
        P: preference [..., N, N].
        support: which actions exist, bool [..., N]; all where None.

    Returns:
        log-policy [..., N] with -inf for actions of probability 0, and its certificate.

    Raises:
        RuntimeError: the linear programme was not solved.
    """
    tables = antisymmetric(P).cpu()
    if support is None:
        support = torch.ones(tables.shape[:-1], dtype=torch.bool)
    support = support.cpu().expand(tables.shape[:-1])
    num = tables.shape[-1]
    games = zip(tables.reshape(-1, num, num), support.reshape(-1, num), strict=True)
    answers = [_solve_one(table[exists][:, exists].numpy()) for table, exists in games]
    policy = torch.zeros(support.shape, dtype=torch.float64)
    policy[support] = torch.from_numpy(np.concatenate([answer for answer, _ in answers]))
    log_policy = policy.log().to(P.device)
    existing = support.double().log().to(P.device)
    certificate = exploitability(P, log_policy, existing, 0.0)
    return Solution(log_policy, certificate, max(steps for _, steps in answers))


def _solve_one(table: np.ndarray) -> tuple[np.ndarray, int]:
    from scipy.optimize import linprog  # slow to import, and no other function here needs it

    num = len(table)
    result = linprog(
        c=np.append(np.zeros(num), 1.0),
        A_ub=np.hstack([table, -np.ones((num, 1))]),
        b_ub=np.zeros(num),
        A_eq=np.append(np.ones(num), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * num + [(None, None)],
        method="highs-ipm",  # with its crossover as exact as the simplex method, and quicker
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if result.status != 0 or result.x is None:
        raise RuntimeError(
            f"the linear programme of a game of {num} actions was not solved: {result.message}"
        )
    probabilities = np.maximum(result.x[:num], 0.0)
    return probabilities / probabilities.sum(), int(result.nit)
