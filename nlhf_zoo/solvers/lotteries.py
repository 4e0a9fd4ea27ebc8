r"""Maximal lotteries: the equilibria of a game without regularisation, and which of them is given.

They are the :math:`p \ge 0` of sum 1 with :math:`A p \le 0`, a polytope. Some lottery plays exactly
the actions B that any of them plays, and beats all others (Goldman and Tucker 1956); so the
lotteries are those of B with :math:`A_{BB} p = 0` that no other action beats, and there is one
alone where the null space of :math:`A_{BB}` is a line.

Where there are more, the one that is given does not depend on the order of the actions: it is the
limit of the regularised equilibria as beta falls to 0, the lottery of least :math:`KL(p \| \mu)`.
For with :math:`\pi_\beta` a best response to itself, and any lottery p,

.. math:: \pi_\beta^T A \pi_\beta - \beta KL(\pi_\beta \| \mu) \ge
          p^T A \pi_\beta - \beta KL(p \| \mu) \ge - \beta KL(p \| \mu),

since :math:`p^T A = -(A p)^T \ge 0`: its divergence is at most that of every lottery, and so is
that of its limit, which is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.errors import UserError

_Array = NDArray[np.float64]

_FEASIBILITY = 1e-10  # of linear programmes; they may leave the bounds by it
ZERO = 1e-9  # probabilities, payoffs and singular values below it are 0
_ROUNDING = 1e-14  # of a divergence
_EXACT, _CLOSE = 1e-10, 1e-2  # relative lengths of a Newton step
_WITHIN = 0.99  # share of the way to the bounds that a step may go
_MOST_STEPS = 100  # for one weight of the barrier; most take three
_LAST_BARRIER = 1e-12  # far below ZERO


def maximal_lottery(table: _Array, reference: _Array) -> tuple[_Array, int, int]:
    """The maximal lottery that is nearest to the reference, by KL(p || mu).

    Args:
        table: A = (P - P^T) / 2 [N, N].
        reference: mu [N], above 0.

    Returns:
        probabilities [N], exactly 0 where it never plays; the dimension of the set of all maximal
        lotteries, 0 where there is no other one; steps taken.

    Raises:
        UserError: rounding hides it, for some margins are too small beside others.
    """
    table = np.where(np.abs(table) > ZERO, table, 0.0)
    try:
        return _solve(table, reference)
    except (_UnsolvedError, np.linalg.LinAlgError) as error:
        margins = np.abs(table[table != 0])
        raise UserError(
            f"the equilibrium of a game of {len(table)} actions was not found in float64 "
            f"({error}): its margins |P - 1/2| lie between {margins.min():.1g} and "
            f"{margins.max():.1g}, so round the small ones, or give a beta above 0"
        ) from error


def lottery_intervals(table: _Array) -> tuple[_Array, _Array]:
    """The least and the largest probability of each action in any maximal lottery, [N] each.

    Args:
        table: A = (P - P^T) / 2 [N, N].

    Raises:
        UserError: the linear programmes do not end.
    """
    num = len(table)
    table = np.where(np.abs(table) > ZERO, table, 0.0)
    scale = np.abs(table).max(1, keepdims=True)
    scaled = table / np.where(scale > 0, scale, 1.0)
    low, high = np.zeros((2, num))
    try:
        played = _inner(scaled, np.ones(num, dtype=bool))[0] > 0
        few = int(played.sum())
        for end, sign in ((low, 1.0), (high, -1.0)):
            costs, bounds = sign * np.eye(few), [(0, 1)] * few
            end[played] = [
                _programme(cost, scaled[:, played], bounds, equal=np.ones((1, few)))[0][place]
                for place, cost in enumerate(costs)
            ]
    except _UnsolvedError as error:
        raise UserError(
            f"the equilibria of a game of {num} actions were not found in float64: {error}"
        ) from error
    low, high = (np.where(end > ZERO, np.minimum(end, 1.0), 0.0) for end in (low, high))
    return low, high


def _solve(table: _Array, reference: _Array) -> tuple[_Array, int, int]:
    corner, steps = _corner(table)
    played, tied = corner > ZERO, table @ corner > -ZERO
    if (played == tied).all() and _null_space(table[played][:, played]).shape[1] == 1:
        return corner, 0, steps  # it beats all that it does not play: B is known
    scale = np.abs(table).max(1, keepdims=True)
    scaled = table / np.where(scale > 0, scale, 1.0)  # the signs of A p alone count
    inner, more = _inner(scaled, tied)
    lottery, dimension, newton = _nearest(scaled, inner, reference)
    return lottery, dimension, steps + more + newton


class _UnsolvedError(RuntimeError):
    """A method did not reach its solution."""


def _corner(table: _Array) -> tuple[_Array, int]:
    """A corner of the polytope: min t subject to A p <= t, sum p = 1, p >= 0."""
    num = len(table)
    answer, steps = _programme(
        np.append(np.zeros(num), 1.0),
        np.hstack([table, -np.ones((num, 1))]),
        [(0, None)] * num + [(None, None)],
        equal=np.append(np.ones(num), 0.0)[None],
    )
    probabilities = np.maximum(answer[:num], 0.0)
    return probabilities / probabilities.sum(), steps


def _inner(table: _Array, tied: NDArray[np.bool_]) -> tuple[_Array, int]:
    """A lottery that plays all of B and beats all others; exactly 0 outside B.

    With x = u + w a multiple of a lottery and slacks v it is max sum u + sum v subject to
    A (u + w) + v <= 0 and u, v <= 1: each action reaches either u = 1 or v = 1. Only ``tied``
    actions can be played, those that do not lose against some lottery.
    """
    columns, num = table[:, tied], len(table)
    few = columns.shape[1]
    answer, steps = _programme(
        -np.concatenate([np.ones(few), np.zeros(few), np.ones(num)]),
        np.hstack([columns, columns, np.eye(num)]),
        [(0, 1)] * few + [(0, None)] * few + [(0, 1)] * num,
        method="highs-ds",
    )
    share, rest = answer[:few], answer[few : 2 * few]
    lottery = np.zeros(num)
    lottery[tied] = np.where(share > 0.5, share + rest, 0.0)
    return lottery / lottery.sum(), steps


def _programme(
    cost: _Array,
    upper: _Array,
    bounds: Sequence[tuple[float | None, float | None]],
    equal: _Array | None = None,
    method: Literal[
        "highs-ipm", "highs-ds"
    ] = "highs-ipm",  # with its crossover as exact as the simplex method, and quicker
) -> tuple[_Array, int]:
    """Minimise ``cost`` x with ``upper`` x <= 0 and, where it is given, ``equal`` x = 1."""
    from scipy.optimize import linprog  # slow to import, and no other function here needs it

    result = linprog(
        c=cost,
        A_ub=upper,
        b_ub=np.zeros(len(upper)),
        A_eq=equal,
        b_eq=None if equal is None else np.ones(len(equal)),
        bounds=bounds,
        method=method,
        options={
            "primal_feasibility_tolerance": _FEASIBILITY,
            "dual_feasibility_tolerance": _FEASIBILITY,
        },
    )
    if result.status != 0 or result.x is None:
        raise _UnsolvedError(result.message)
    return result.x, int(result.nit)


def _null_space(matrix: _Array) -> _Array:
    """An orthonormal basis [N, D] of the x with ``matrix`` x = 0, by singular values."""
    _, values, rows = np.linalg.svd(matrix)
    rank = int((values > ZERO).sum())
    return rows[rank:].T


def _nearest(table: _Array, inner: _Array, reference: _Array) -> tuple[_Array, int, int]:
    """The lottery of least KL(p || mu), from one inside the polytope.

    Beside it are the polytope's dimension, for what lies inside may be moved along each direction
    of the null space, and the Newton steps taken.

    Newton's method on p = p_0 + V z, V the directions in which lotteries differ, with a logarithmic
    barrier against what other actions would win. Each action of B has a positive probability, for
    there the divergence's slope has no bound.
    """
    played = inner > 0
    own = table[played][:, played]
    spanned = _null_space(own)
    moves = spanned @ _null_space(spanned.sum(0)[None])  # of sum 0
    loss = -table[~played][:, played]  # of each other action, against p
    prior = reference[played]
    point = spanned @ (spanned.T @ inner[played])  # takes off what the programme left
    point /= point.sum()
    # Where the bounds do not matter, or only just, the nearest one of all is it: near a bound that
    # it touches, what a barrier b leaves is of the order of sqrt(b).
    free, steps = _newton(point, moves, prior, loss[:0], 0.0)
    if (loss @ free >= -_LAST_BARRIER).all():
        return _whole(free, played), moves.shape[1], steps
    # No heavier than that the divergence and the barrier matter alike.
    barrier = float((loss @ point).min()) if len(loss) else 0.0
    while True:
        point, more = _newton(point, moves, prior, loss, barrier)
        steps += more
        if barrier <= _LAST_BARRIER:
            break
        barrier = max(barrier / 10, _LAST_BARRIER)
    return _whole(point, played), moves.shape[1], steps


def _whole(point: _Array, played: NDArray[np.bool_]) -> _Array:
    """A lottery of B as one of all actions."""
    lottery = np.zeros(len(played))
    lottery[played] = point / point.sum()
    return lottery


def _newton(
    point: _Array, moves: _Array, prior: _Array, loss: _Array, barrier: float
) -> tuple[_Array, int]:
    """Minimise KL(p || mu) - barrier sum log(loss p) along ``moves``."""

    def value(p: _Array) -> float:
        return float((p * np.log(p / prior)).sum() - barrier * np.log(loss @ p).sum())

    last = np.inf
    for step in range(_MOST_STEPS):
        # In p / sqrt(p) the divergence's curvature is the identity, however small some p are.
        axes = np.sqrt(point)[:, None] * np.linalg.qr(moves / np.sqrt(point)[:, None])[0]
        gains = (loss @ axes) / (loss @ point)[:, None]
        slope = axes.T @ np.log(point / prior) - barrier * gains.sum(0)
        weights = np.linalg.solve(np.eye(axes.shape[1]) + barrier * gains.T @ gains, slope)
        change = -axes @ weights
        rates = np.concatenate([change / point, -gains @ weights])  # of what stays positive
        length = float(np.abs(rates).max())
        if length < _CLOSE and (length < _EXACT or length > last / 2):
            # Newton's method is quadratic here: the step is exact, or rounding stops it.
            return point + change, step + 1
        size = min(1.0, _WITHIN / max(-rates.min(), _WITHIN))
        allowed = value(point) + _ROUNDING
        while value(point + size * change) > allowed - size * float(slope @ weights) / 4:
            size /= 2
        point, last = point + size * change, length
    raise _UnsolvedError(f"Newton's method did not end in {_MOST_STEPS} steps")
