"""As beta falls, the regularised answer goes to the equilibrium of the votes themselves.

Playing pi* of the game at beta, nobody gains more than beta log(1 / min mu) in the unregularised
game: its regularised best response gains nothing, and what the regularisation can be worth is at
most that. Exploitabilities are compared, for an equilibrium need not be unique.
"""

import math

import pytest
import torch
from paths import DATA

from nlhf_zoo.data.tables.games import annotators
from nlhf_zoo.data.tables.votes import read_votes
from nlhf_zoo.solvers import exploitability, regularised_nash, unregularised_nash, win_rates

BETAS = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]


def _votes(name):
    return read_votes(DATA / name, prior=0.0).preference


GAMES = {
    "debian_leader_2010": lambda: _votes("debian_leader_2010.csv"),
    "debian_leader_2012": lambda: _votes("debian_leader_2012.csv"),
    "cycle of 3": lambda: annotators(6, 60, cycle=3, seed=1),
    "cycle of 5": lambda: annotators(8, 60, cycle=5, seed=2, noise=0.0),
}


@pytest.mark.parametrize("name", GAMES)
def test_the_unregularised_exploitability_falls_with_beta(name):
    preference = GAMES[name]()
    num_actions = preference.shape[-1]
    log_reference = torch.full((1, num_actions), -math.log(num_actions), dtype=torch.float64)
    nothing = unregularised_nash(preference)
    assert nothing.exploitability.item() < 1e-9
    gains = []
    for beta in BETAS:
        solution = regularised_nash(preference, log_reference, beta)
        assert solution.exploitability.item() < 1e-12
        gains.append(exploitability(preference, solution.log_policy, log_reference, 0.0).item())
        assert gains[-1] <= beta * math.log(num_actions)
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 0.01  # at a large beta the answer is no equilibrium of the votes
    assert gains[-1] < 0.01


@pytest.mark.parametrize("name", ["cycle of 3", "cycle of 5"])
def test_a_cycle_is_mixed_over(name):
    preference = GAMES[name]()
    beats = preference[0] > 0.5
    assert not (beats.sum(-1) == preference.shape[-1] - 1).any()  # nobody beats all others
    solution = unregularised_nash(preference)
    assert int((solution.log_policy.exp() > 1e-6).sum()) >= 3
    assert win_rates(preference, solution.log_policy).max().item() == pytest.approx(0.5)
