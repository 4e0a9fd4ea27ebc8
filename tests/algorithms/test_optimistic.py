"""Optimistic multiplicative weights, that is ONPO, and the claims of both papers."""

import pytest
import torch
from zoo import engine, normal_logits, small_games

from nlhf_zoo.algorithms import SPPO, OptimisticMirrorDescent
from nlhf_zoo.data.tables import games
from nlhf_zoo.solvers import exploitability

ETA = 0.125


def weights(eta=ETA):
    return OptimisticMirrorDescent(eta, regularised=False)


def product(P, log_policy):
    return torch.einsum("cij,cj->ci", P, log_policy.softmax(-1))


def two_sequences(P, start, eta, rounds):
    """ONPO: pi_t ~ pi'_t exp(eta P pi_{t-1}), then pi'_{t+1} ~ pi'_t exp(eta P pi_t)."""
    policy = prime = start
    for _ in range(rounds):
        policy = (prime + eta * product(P, policy)).log_softmax(-1)
        prime = (prime + eta * product(P, policy)).log_softmax(-1)
        yield policy


def test_the_two_sequences_of_onpo_are_these_iterates():
    P, mu = small_games()
    start = normal_logits(*mu.shape, seed=4)
    found = engine(weights(0.3), P, mu, start).run(0, 200).log_policy.log_softmax(-1)
    expected = torch.stack([*two_sequences(P, start, 0.3, 200)])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_the_default_step_is_within_the_theory():
    """At most 1/8, as both papers want it."""
    assert OptimisticMirrorDescent().eta <= 1 / 8


@pytest.mark.parametrize("family", ["random", "rock, paper, scissors"])
def test_the_gap_of_the_average_falls_as_one_over_the_rounds(family):
    """ONPO's claim: max_y P(y > mean pi_t) - 1/2 <= max_y log(1 / mu(y)) / (eta T), at every T."""
    P, mu = small_games()
    if family != "random":
        P, mu = games.cyclic(3, 1.0), normal_logits(1, 3, seed=1).log_softmax(-1)
    rounds = 3000
    policies = engine(weights(), P, mu, mu).run(0, rounds).log_policy.softmax(-1)
    number = torch.arange(1, rounds + 1, dtype=torch.float64)[:, None]
    average = policies.cumsum(0) / number[..., None]
    gap = exploitability(P, average.log(), mu, 0.0)
    assert (gap * number * ETA <= -mu.amin(-1) + 1e-9).all()
    assert (gap[-1] > 1e-9).all()  # no faster than that, so that the bound is of something


def test_the_last_iterate_converges_where_multiplicative_weights_cycle():
    """2512.24818's claim, linearly, where the equilibrium has full support."""
    P, start = games.comal(), torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    gaps = {}
    for algorithm in (weights(), SPPO(ETA)):
        log_policies = engine(algorithm, P, start, start).run(0, 6000).log_policy
        gaps[type(algorithm)] = exploitability(P, log_policies, start, 0.0)[:, 0]
    found = gaps[OptimisticMirrorDescent]
    tops = found.unflatten(0, (3, 2000)).amax(1)
    assert (tops[1:] < 0.7 * tops[:-1]).all()
    assert gaps[SPPO][-2000:].max() > 2 * gaps[SPPO][0] > 0
