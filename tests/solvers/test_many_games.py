"""Many games at once: the fixed point's equation, the conditions of a lottery, and single games."""

import numpy as np
import pytest
import torch

from nlhf_zoo.solvers import many_games, regularised_nash, unregularised_nash
from nlhf_zoo.solvers.many_games import equilibria


def games(kind, count=20, num=6):
    rng = np.random.default_rng(3)
    upper = {
        "uniform": rng.uniform(-0.5, 0.5, (count, num, num)),
        "ties": rng.integers(-1, 2, (count, num, num)) / 4,
        "large": rng.normal(size=(count, num, num)) * 20,  # as of log-odds
    }[kind]
    upper = np.triu(upper, 1)
    mu = torch.tensor(rng.dirichlet(np.ones(num))).log()
    return 0.5 + torch.tensor(upper - upper.transpose(0, 2, 1)), mu


@pytest.mark.parametrize("kind", ["uniform", "ties", "large"])
@pytest.mark.parametrize("beta", [1.0, 0.1, 1e-3])
def test_solves_the_equation_of_the_regularised_game(kind, beta):
    P, mu = games(kind)
    found = equilibria(P, mu, beta)
    pi = found.log_policy.exp()
    fixed = mu + ((P - 0.5) @ pi[..., None])[..., 0] / beta
    torch.testing.assert_close(pi, fixed.softmax(-1), rtol=0, atol=1e-10)
    assert (found.exploitability <= 1e-14 * max(beta, 1)).all()
    assert found.unique.all()


@pytest.mark.parametrize("kind", ["uniform", "ties", "large"])
def test_gives_the_lottery_of_each_game(kind):
    P, mu = games(kind, num=5)
    found = equilibria(P, mu, 0)
    pi = found.log_policy.exp()
    torch.testing.assert_close(pi.sum(-1), torch.ones(len(P), dtype=pi.dtype))
    assert (((P - 0.5) @ pi[..., None]) <= 1e-9 * P.abs().max()).all()
    alone = unregularised_nash(P, log_reference=mu.expand(len(P), -1))
    torch.testing.assert_close(pi, alone.log_policy.exp(), rtol=0, atol=1e-9)
    assert found.dimension.tolist() == alone.dimension.tolist()
    assert {*(alone.dimension > 0).tolist()} == ({True, False} if kind == "ties" else {False})


def test_what_the_batch_does_not_solve_is_left_to_the_single_game(monkeypatch):
    P, mu = games("uniform", 3)

    def stuck(table, prior, beta):
        xi = torch.zeros(table.shape[:2], dtype=torch.float64)
        xi[0] = torch.nan
        return (prior + xi).log_softmax(-1), 0

    monkeypatch.setattr(many_games, "_regularised", stuck)
    found, alone = equilibria(P, mu, 0.1), regularised_nash(P, mu, 0.1)
    torch.testing.assert_close(found.log_policy, alone.log_policy)
    assert (found.exploitability <= 1e-14).all()


def test_few_programmes_serve_many_games(monkeypatch):
    """Resamples of one election: those that play the same alternatives need one programme."""
    rng = np.random.default_rng(0)
    cycle = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) * 0.2
    upper = np.triu(cycle + rng.normal(size=(200, 3, 3)) * 0.02, 1)
    P = 0.5 + torch.tensor(upper - upper.transpose(0, 2, 1))
    solved = []
    single = many_games.maximal_lottery
    monkeypatch.setattr(
        many_games, "maximal_lottery", lambda *args: solved.append(1) or single(*args)
    )
    found = equilibria(P, torch.zeros(3), 0)
    assert len(solved) == 1
    # Each is played in proportion to the edge that it is not on.
    edges = torch.stack([P[:, 1, 2], P[:, 2, 0], P[:, 0, 1]], 1) - 0.5
    expected = edges / edges.sum(1, keepdim=True)
    torch.testing.assert_close(found.log_policy.exp(), expected, rtol=0, atol=1e-12)
