"""Equilibria without regularisation: whether there is one alone, and which of several is given."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from nlhf_zoo.solvers import equilibrium_intervals, regularised_nash, solve, unregularised_nash
from nlhf_zoo.solvers.lotteries import maximal_lottery


def integer_games(count):
    """Games of few different margins, as votes give them, and references."""
    rng = np.random.default_rng(4)
    for _ in range(count):
        num, most = int(rng.integers(2, 8)), int(rng.integers(1, 4))
        upper = np.triu(rng.integers(-most, most + 1, (num, num)), 1)
        yield 0.5 + (upper - upper.T) / (2 * most), rng.dirichlet(np.ones(num))


def width(P):
    """How far the probability of an action differs between equilibria, at most."""
    margins, num = P - 0.5, len(P)
    bounds = [
        [
            sign
            * linprog(
                sign * one, margins, np.zeros(num), np.ones((1, num)), [1], method="highs"
            ).fun
            for sign in (1, -1)
        ]
        for one in np.eye(num)
    ]
    return max(high - low for low, high in bounds)


def test_says_whether_it_is_the_only_equilibrium():
    """Against the least and the largest probability of each action, by linear programmes."""
    found = [(bool(solve(P, beta=0).unique), width(P) < 1e-7) for P, _ in integer_games(40)]
    assert [one for one, _ in found] == [other for _, other in found]
    assert {one for one, _ in found} == {True, False}


def test_several_equilibria_do_not_depend_on_the_order_of_the_rows():
    """Ann and Bob beat Cid alike and tie: whose row is first once won alone."""
    P = torch.tensor([[0.5, 0.5, 0.9], [0.5, 0.5, 0.9], [0.1, 0.1, 0.5]])
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        solution = solve(P[order][:, order], beta=0)
        expected = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)[order]
        torch.testing.assert_close(solution.log_policy.exp(), expected)
        assert not solution.unique
    rng = np.random.default_rng(5)
    for P, mu in integer_games(25):
        order = rng.permutation(len(P))
        one = solve(P, mu, 0).log_policy.exp()
        other = solve(P[order][:, order], mu[order], 0).log_policy.exp()
        torch.testing.assert_close(one[order], other, rtol=0, atol=1e-9)


def test_of_several_equilibria_it_is_the_one_that_small_betas_approach():
    compared = 0
    for P, mu in integer_games(25):
        solution = solve(P, mu, 0)
        if solution.unique:
            continue
        away = [
            (solve(P, mu, beta).log_policy.exp() - solution.log_policy.exp()).abs().max()
            for beta in (1e-4, 1e-6)
        ]
        assert away[1] <= 1e-4
        assert away[1] <= away[0] / 30 + 1e-9
        assert solution.exploitability <= 1e-14
        compared += 1
    assert compared > 5


def test_what_others_would_win_bounds_what_is_given():
    """Two cycles share an equilibrium polytope whose nearest point lies where a third wins nothing.

    Ann and Bob tie; Cid loses .2 to Ann and beats Bob by .1, so that Bob is played in a third of
    what Ann is, at most two thirds: of a reference that wants more of Bob, two thirds is nearest.
    """
    P = np.array([[0.5, 0.5, 0.7], [0.5, 0.5, 0.4], [0.3, 0.6, 0.5]])
    for mu, expected in (
        ([0.1, 0.8, 0.1], [1 / 3, 2 / 3, 0]),  # .8 / .9 of Bob would be too much
        ([0.6, 0.3, 0.1], [2 / 3, 1 / 3, 0]),  # what the reference wants is an equilibrium
    ):
        solution = solve(P, mu, 0)
        np.testing.assert_allclose(solution.log_policy.exp(), expected, rtol=0, atol=1e-10)
        assert solution.exploitability <= 1e-14


def test_games_of_a_batch_have_their_own_answers():
    P = torch.full((2, 2, 2), 0.5, dtype=torch.float64)
    P[1, 0, 1], P[1, 1, 0] = 0.9, 0.1
    log_mu = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    solution = unregularised_nash(P, log_reference=log_mu)
    assert solution.unique.tolist() == [False, True]
    expected = torch.tensor([[0.25, 0.75], [1, 0]], dtype=torch.float64)
    torch.testing.assert_close(solution.log_policy.exp(), expected)
    assert regularised_nash(P, log_mu, 0.1).unique.tolist() == [True, True]


@pytest.mark.parametrize("num", [1, 2, 30])
def test_where_all_tie_it_is_the_reference(num):
    mu = np.random.default_rng(num).dirichlet(np.ones(num))
    solution = solve(np.full((num, num), 0.5), mu, 0)
    np.testing.assert_allclose(solution.log_policy.exp(), mu, rtol=0, atol=1e-12)
    assert bool(solution.unique) == (num == 1)


def corners(P):
    """The corners of {p >= 0, sum p = 1, (P - 1/2) p <= 0}, by trying each N - 1 of its bounds."""
    num = len(P)
    bounds = np.concatenate([0.5 - P, np.eye(num)])  # what is to be at least 0
    tight = np.array([*combinations(range(2 * num), num - 1)]).reshape(-1, num - 1)
    system = np.concatenate([bounds[tight], np.ones((len(tight), 1, num))], 1)
    system = system[np.abs(np.linalg.det(system)) > 1e-9]
    point = np.linalg.solve(system, np.eye(num)[:, -1:])[..., 0]
    return point[(point @ bounds.T > -1e-9).all(1)]


def test_the_set_of_all_equilibria_against_its_corners():
    """Their dimension, and the least and the largest probability of each action."""
    dimensions = set()
    for P, mu in integer_games(30):
        if len(P) > 5:
            continue
        solution = solve(P, mu, 0)
        found = corners(P)
        dimension = np.linalg.matrix_rank(found - found[0], tol=1e-7)
        assert solution.dimension == dimension
        every = torch.ones(len(P), dtype=torch.bool)
        low, high = equilibrium_intervals(torch.tensor(P), solution, every)
        np.testing.assert_allclose(low, found.min(0), rtol=0, atol=1e-9)
        np.testing.assert_allclose(high, found.max(0), rtol=0, atol=1e-9)
        dimensions.add(int(dimension))
    assert dimensions == {0, 1}


def test_sets_of_equilibria_that_are_known():
    """Clones of rock, paper and scissors share a third each; what all beat is never played."""
    three = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) / 2
    P = np.full((7, 7), 0.0)
    P[:6, :6] = 0.5 + np.kron(three, np.ones((2, 2)))
    P[:, 6], P[6, 6] = 1.0, 0.5
    solution = solve(P, beta=0)
    every = torch.ones(7, dtype=torch.bool)
    assert solution.dimension == 3
    low, high = equilibrium_intervals(torch.tensor(P), solution, every)
    np.testing.assert_allclose(low, np.zeros(7), atol=1e-12)
    np.testing.assert_allclose(high, [1 / 3] * 6 + [0], atol=1e-12)
    # Too many to be worth so many programmes; and an action that does not exist is never played.
    few = torch.arange(7) < 6
    solution = unregularised_nash(torch.tensor(P), few)
    low, high = equilibrium_intervals(torch.tensor(P), solution, few, most=5)
    assert low[:6].isnan().all()
    assert high[:6].isnan().all()
    assert low[6] == high[6] == 0


def test_one_that_just_touches_a_bound_is_exact():
    """Maximal are (p, 0, 1 - p) with p >= 1/2: a reference within, on and beyond that bound."""
    table = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    for first, nearest in ((0.6, 0.75), (0.4, 0.5), (0.2, 0.5)):
        lottery, dimension, _ = maximal_lottery(table, np.array([first, 0.2, 0.8 - first]))
        assert dimension == 1
        assert lottery == pytest.approx([nearest, 0, 1 - nearest], abs=1e-11)
