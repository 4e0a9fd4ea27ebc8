"""The policy for the worst served annotator, against brute force and the game of one."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from nlhf_zoo.data.tables.games import complete
from nlhf_zoo.solvers import annotators, regularised_nash, unregularised_nash, worst_case


def tables(num_annotators, num, seed, games=1):
    generator = torch.Generator().manual_seed(seed)
    shape = num_annotators, games, num, num
    return complete(torch.rand(*shape, dtype=torch.float64, generator=generator))


def reference(num, seed, games=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(games, num, dtype=torch.float64, generator=generator).log_softmax(-1)


def exploited(P, pi, mu, beta):
    """The textbook exploitability in numpy."""
    if beta == 0:
        return (P @ pi).max() - 0.5
    top = beta * np.log((mu * np.exp((P @ pi - 0.5) / beta)).sum())
    return top + beta * (pi * np.log(pi / mu)).sum()


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.5])
def test_one_annotator_is_the_game_of_the_package(beta):
    P, log_mu = tables(1, 7, seed=0, games=2), reference(7, seed=1, games=2)
    found = worst_case(P, log_mu, beta)
    nash = regularised_nash(P[0], log_mu, beta) if beta else unregularised_nash(P[0])
    torch.testing.assert_close(found.log_policy.exp(), nash.log_policy.exp(), rtol=0, atol=1e-8)
    assert found.weights.flatten().tolist() == pytest.approx([1.0, 1.0])
    assert found.value.abs().max() < 1e-9
    assert (found.gap.abs() < 1e-9).all()


@pytest.mark.parametrize("seed", range(3))
def test_without_regularisation_no_policy_of_a_grid_is_better(seed):
    """Of three actions: the largest exploitability on a grid, whose step moves it by 1 / 40."""
    P = tables(3, 3, seed)
    found = worst_case(P, reference(3, seed=1), 0.0)
    grid = [(a, b, 40 - a - b) for a, b in itertools.product(range(41), repeat=2) if a + b <= 40]
    worst = min(max(exploited(p[0].numpy(), np.array(g) / 40, None, 0) for p in P) for g in grid)
    assert found.value.item() <= worst + 1e-9
    assert found.value.item() >= worst - 0.025
    assert found.exploitability.max().item() == pytest.approx(found.value.item(), abs=1e-9)
    assert abs(found.gap.item()) < 1e-9
    assert found.weights.sum().item() == pytest.approx(1)
    # Whom the adversary picks is served worst.
    picked = found.weights[0] > 1e-9
    torch.testing.assert_close(found.exploitability[0, picked], found.value.expand(picked.sum()))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_with_regularisation_it_is_the_soft_maximum(beta):
    """Against a descent on beta log mean exp(e_j / beta), written with the textbook's e_j."""
    P, log_mu = tables(3, 5, seed=4), reference(5, seed=5)
    mu = log_mu[0].exp().numpy()

    def each(logits):
        pi = np.exp(logits - np.logaddexp.reduce(logits))
        return np.array([exploited(p[0].numpy(), pi, mu, beta) for p in P])

    def soft(logits):
        return beta * np.log(np.exp(each(logits) / beta).mean())

    best = minimize(soft, np.log(mu), method="BFGS", options={"gtol": 1e-10})
    found = worst_case(P, log_mu, beta)
    assert found.value.item() == pytest.approx(best.fun, abs=1e-9)
    policy = np.exp(best.x - np.logaddexp.reduce(best.x))
    np.testing.assert_allclose(found.log_policy[0].exp(), policy, atol=1e-4)
    np.testing.assert_allclose(
        found.exploitability[0], each(found.log_policy[0].numpy()), atol=1e-9
    )
    weights = torch.softmax(found.exploitability / beta, -1)
    torch.testing.assert_close(found.weights, weights, rtol=0, atol=1e-6)
    assert 0 <= found.gap.item() < 1e-12
    # The population's own equilibrium serves somebody worse.
    mean = regularised_nash(P.mean(0), log_mu, beta).log_policy[0].numpy()
    assert soft(mean) > found.value.item() + 1e-6


@pytest.mark.parametrize("goal", [1.0, 0.03, 1e-3])
def test_the_gap_bounds_what_is_missing(goal, monkeypatch):
    P, log_mu = tables(2, 6, seed=6), reference(6, seed=7)
    exact = worst_case(P, log_mu, 0.02).value.item()
    monkeypatch.setattr(annotators, "_GOAL", goal)
    early = worst_case(P, log_mu, 0.02)
    assert 0 < early.value.item() - exact <= early.gap.item() <= goal * 0.02


def test_small_temperatures_ask_the_worst_served_alone():
    P, log_mu = tables(3, 5, seed=8), reference(5, seed=9)
    hard, soft = (worst_case(P, log_mu, beta) for beta in (0.0, 0.002))
    assert soft.exploitability.max().item() == pytest.approx(hard.value.item(), abs=0.02)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_actions_that_a_prompt_lacks_are_not_played(beta):
    P, log_mu = tables(2, 4, seed=10), reference(4, seed=11)
    alone = worst_case(P, log_mu, beta)
    padded = torch.full((2, 1, 6, 6), 0.5, dtype=torch.float64)
    padded[:, :, :4, :4] = P
    fewer = torch.cat([log_mu, torch.full((1, 2), -torch.inf, dtype=torch.float64)], -1)
    found = worst_case(padded, fewer, beta)
    torch.testing.assert_close(found.log_policy[:, :4].exp(), alone.log_policy.exp())
    assert (found.log_policy[:, 4:] == -torch.inf).all()
    torch.testing.assert_close(found.exploitability, alone.exploitability, rtol=0, atol=1e-9)
