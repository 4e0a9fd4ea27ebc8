"""MNPO: its one-step formula, who stands in for whom, and which game a ratio solves."""

import pytest
import torch
from zoo import BETA, engine, normal_logits, small_games

from nlhf_zoo.algorithms import INPO, MNPO
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.solvers import exploitability


def scattered(algorithm, mu):
    """Players that are all different policies."""
    names = ("policy", *algorithm.players)
    return {name: normal_logits(*mu.shape, seed=i) for i, name in enumerate(names, 10)}


def test_one_round_is_the_formula_of_the_paper():
    """pi_i ~ (prod_j pi_j)^(1/(n-1)) exp(eta/(n-1) sum_j P pi_j): three opponents, no reference."""
    P, mu = small_games()
    algorithm = MNPO(0.7, weights=[1 / 3] * 3, ratio=0.0)
    players = scattered(algorithm, mu)
    played = ClosedFormRounds(algorithm, BETA, P, mu, players).run(0, 1)
    others = [players[f"history_{j}"].softmax(-1) for j in (1, 2, 3)]
    mean = sum(P @ pi[:, :, None] for pi in others)[:, :, 0] / 3
    expected = (others[0] * others[1] * others[2]) ** (1 / 3) * (0.7 * mean).exp()
    found = played.log_policy[0].softmax(-1)
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True), atol=1e-12, rtol=0)
    assert played.queries.tolist() == [3]


def test_the_opponents_are_the_last_policies():
    P, mu = small_games()
    algorithm = MNPO(weights=[0.5, 0.3, 0.2])
    play = engine(algorithm, P, mu, mu)
    policies = play.run(0, 5).log_policy.log_softmax(-1)
    for age, name in enumerate(("policy", "history_1", "history_2", "history_3")):
        shown = policies[-1 - max(0, age - 1)]  # the first is a copy of the policy by then
        torch.testing.assert_close(play.logits()[name].log_softmax(-1), shown, atol=1e-12, rtol=0)


def test_with_one_opponent_it_is_inpo():
    P, mu = small_games()
    pair = MNPO(0.7, weights=[1.0]), INPO(0.7)
    runs = [engine(a, P, mu, mu).run(0, 50).log_policy.log_softmax(-1) for a in pair]
    torch.testing.assert_close(*runs, atol=1e-12, rtol=0)
    (mine,), (other,) = (a.steps(BETA, 0) for a in pair)
    assert (mine.self_play, mine.step_size) == (other.self_play, other.step_size)
    assert [a.queries(8, 3, enumerated=False) for a in pair] == [28, 28]


@pytest.mark.parametrize("ratio", [0.06, 0.3])
def test_a_ratio_solves_the_game_at_its_own_temperature(ratio):
    """At ratio / eta, and not at beta."""
    P, mu = small_games()
    log_policy = engine(MNPO(0.3, ratio=ratio), P, mu, mu).run(0, 1500).log_policy[-1]
    assert exploitability(P, log_policy, mu, ratio / 0.3).max() < 1e-10
    assert exploitability(P, log_policy, mu, BETA).min() > 1e-5
    assert not MNPO(ratio=ratio).last_iterate


@pytest.mark.parametrize("weights", [[], [0.5, 0.6], [1.5, -0.5], [1.0, 0.0]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be numbers above 0 that sum to 1"):
        MNPO(weights=weights)
