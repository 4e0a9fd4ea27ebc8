"""Payoffs against closed forms, a linear programme of another kind, and what a payoff must be."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from nlhf_zoo.data.tables.games import complete, cyclic
from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers import bounded_payoff, exploitability, nash, solve
from nlhf_zoo.solvers.payoffs import TIE

NAMES = ("identity", "sign", "log_odds")


def cube(margin):
    return 40 * margin**3


def random_table(num, seed):
    generator = torch.Generator().manual_seed(seed)
    return complete(torch.rand(num, num, dtype=torch.float64, generator=generator))


# -- what a payoff is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payoff", "bound", "values", "largest"),
    [
        ("identity", None, [0.0, 0.3, 0.5, 0.9], 0.5),
        ("sign", None, [0.0, 0.0, 0.5, 1.0], 0.5),
        ("log_odds", None, [-math.inf, 0.5 + math.log(3 / 7), 0.5, 0.5 + math.log(9)], math.inf),
        ("log_odds", 2.0, [-1.5, 0.5 + math.log(3 / 7), 0.5, 2.5], 2.0),
        (cube, None, [-4.5, 0.18, 0.5, 3.06], 5.0),
        (cube, 0.25, [0.25, 0.25, 0.5, 0.75], 0.25),
    ],
)
def test_payoffs_by_hand(payoff, bound, values, largest):
    made = bounded_payoff(payoff, bound)
    for dtype in (torch.float64, torch.float32):
        preference = torch.tensor([[0.0, 0.3, 0.5, 0.9]], dtype=dtype)
        found = made(preference)
        assert found.dtype == dtype
        torch.testing.assert_close(found, torch.tensor([values], dtype=dtype))
    assert made.bound == pytest.approx(largest)


def test_what_rounding_does_not_tell_from_a_tie_is_one():
    margin = torch.tensor([0.9 * TIE, -0.9 * TIE, 1.1 * TIE], dtype=torch.float64)
    assert bounded_payoff("sign")(0.5 + margin).tolist() == [0.5, 0.5, 1.0]


REFUSED = {
    "not odd": (lambda d: d + 1e-3, r"must be odd, f\(-d\) = -f\(d\)"),
    "not odd in the large": (lambda d: torch.where(d < 0, 2 * d, d), "must be odd"),
    "falling": (lambda d: -d, "must not fall"),
    "falling at the end": (lambda d: torch.sin(8 * d), "must not fall"),
    "of all margins together": (lambda d: d / d.abs().max(), "must not depend on the other ones"),
    "of another shape": (lambda d: d.sum(), "a tensor of the shape"),
    "no tensor": (lambda d: 0.5, "a tensor of the shape"),
    "no number": (lambda d: d.sqrt(), "no number at some margin"),
    "nothing": (lambda d: 0 * d, "0 of every margin"),
    "failing": (lambda d: d.nonsense, "could not be computed: .*nonsense"),
    "another name": ("median", "one of identity, sign, log_odds or a function, not 'median'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_payoff_is_refused(what):
    payoff, sentence = REFUSED[what]
    with pytest.raises(UserError, match=sentence):
        bounded_payoff(payoff)


@pytest.mark.parametrize("bound", [0, -1.0, math.nan, math.inf])
def test_a_bound_is_a_number(bound):
    with pytest.raises(UserError, match="finite number above 0"):
        bounded_payoff("log_odds", bound)


def test_an_infinite_payoff_is_refused_by_its_entry():
    with pytest.raises(UserError, match=r"P: entry \[0, 1\] is 1, .* give the payoff a bound"):
        solve([[0.5, 1.0], [0.0, 0.5]], payoff="log_odds")
    assert solve([[0.5, 1.0], [0.0, 0.5]], payoff="log_odds", bound=3.0).unique


# -- what its game is ------------------------------------------------------------------------------


def textbook(payoff, log_pi, log_mu, beta):
    """The exploitability as it is written, for payoffs of any size."""
    pi, against = np.exp(log_pi), payoff @ np.exp(log_pi)
    if beta == 0:
        return against.max() - 0.5
    top = beta * np.logaddexp.reduce(log_mu + against / beta)
    return top + beta * (pi * (log_pi - log_mu)).sum() - 0.5


@pytest.mark.parametrize("beta", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("payoff", [*NAMES, cube])
def test_exploitability_is_about_the_game_of_the_payoff(payoff, beta):
    P = random_table(6, seed=1)
    table = bounded_payoff(payoff).of_table(P, "P")
    assert payoff in ("identity", "sign") or table.max() > 1
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    log_pi, log_mu = logits.log_softmax(-1)
    found = exploitability(table, log_pi, log_mu, beta).item()
    np.testing.assert_allclose(found, textbook(table.numpy(), log_pi.numpy(), log_mu.numpy(), beta))
    solution = solve(P, log_mu.exp(), beta, payoff=payoff)
    assert solution.exploitability.item() < 1e-9
    if beta:
        other = (log_mu + table @ solution.log_policy.exp() / beta).log_softmax(-1)
        torch.testing.assert_close(solution.log_policy, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("newton", [True, False])
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_log_odds_of_bradley_terry_are_the_policy_of_rlhf(beta, newton, monkeypatch):
    """mu exp(reward / beta) / Z, by Newton's method and by extragradient steps of its size."""
    if not newton:
        monkeypatch.setattr(nash, "_MOST_NEWTON_ACTIONS", 0)
    reward = torch.tensor([0.0, 1.0, -3.0, 2.5, 4.0], dtype=torch.float64)
    mu = torch.tensor([0.3, 0.2, 0.1, 0.25, 0.15], dtype=torch.float64)
    found = solve(torch.sigmoid(reward[:, None] - reward), mu, beta, payoff="log_odds")
    expected = (mu.log() + reward / beta).log_softmax(-1)
    torch.testing.assert_close(found.log_policy.exp(), expected.exp(), rtol=0, atol=1e-7)
    assert found.exploitability < 1e-12


def test_extragradient_steps_have_the_size_of_the_payoff(monkeypatch):
    """In a cycle they diverge if they are made for payoffs of at most 1/2."""
    monkeypatch.setattr(nash, "_MOST_NEWTON_ACTIONS", 0)
    mu = [0.4, 0.1, 0.2, 0.05, 0.25]
    found = solve(cyclic(5)[0], mu, 0.3, payoff=lambda d: 16 * d)
    assert found.exploitability < 1e-12


def test_a_multiple_of_the_payoff_is_another_temperature():
    P = random_table(8, seed=3)
    for factor in (0.2, 30.0):
        found = solve(P, beta=0.1, payoff=lambda d, factor=factor: factor * d)
        expected = solve(P, beta=0.1 / factor)
        torch.testing.assert_close(found.log_policy, expected.log_policy, rtol=0, atol=1e-9)


@pytest.mark.parametrize("payoff", [*NAMES, cube])
def test_a_condorcet_winner_is_the_equilibrium_of_every_payoff(payoff):
    """It beats each other action, if by little; these may be as cyclic as they like."""
    for seed in range(5):
        P = random_table(6, seed).clamp(1e-3, 1 - 1e-3)
        P[2], P[:, 2] = 0.51, 0.49
        P[2, 2] = 0.5
        found = solve(P, beta=0, payoff=payoff)
        assert found.log_policy.exp().tolist() == [0, 0, 1, 0, 0, 0]
        assert found.unique


def test_majority_and_margins_differ_in_a_cycle():
    """By margins each is played in proportion to the edge that it is not on; C1 is uniform."""
    P = [[0.5, 0.2, 0.9], [0.8, 0.5, 0.3], [0.1, 0.7, 0.5]]
    margins = solve(P, beta=0).log_policy.exp()
    majority = solve(P, beta=0, payoff="sign").log_policy.exp()
    torch.testing.assert_close(margins, torch.tensor([2, 4, 3]).double() / 9)
    torch.testing.assert_close(majority, torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(4))
def test_majority_lotteries_of_tournaments(seed):
    """The one equilibrium of a tournament, by a linear programme written for it alone.

    Its support is odd (Fisher and Ryan 1992).
    """
    P = random_table(9, seed)
    wins = np.sign(P.numpy() - 0.5)
    num = len(wins)
    # max v subject to p wins >= v in each column.
    programme = linprog(
        np.append(np.zeros(num), -1),
        A_ub=np.hstack([-wins.T, np.ones((num, 1))]),
        b_ub=np.zeros(num),
        A_eq=np.append(np.ones(num), 0)[None],
        b_eq=[1],
        bounds=[(0, None)] * num + [(None, None)],
    )
    found = solve(P, beta=0, payoff="sign")
    np.testing.assert_allclose(found.log_policy.exp().numpy(), programme.x[:-1], atol=1e-8)
    assert found.unique
    assert (found.log_policy > -math.inf).sum() % 2 == 1
