"""The best response to a policy that stays: on tables, where it is known.

Statistics: as in `test_gradients`, four standard errors of each coordinate.
"""

from functools import partial

import numpy as np
import pytest
import torch
import zoo
from scipy.special import log_softmax, softmax

from algorithms.test_gradients import (
    enumerated_gradient,
    sampled_gradients,
    within_four_standard_errors,
)
from nlhf_zoo import solvers
from nlhf_zoo.algorithms import surrogates
from nlhf_zoo.algorithms.best_response import BestResponse
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample

BETAS = [0.03, 0.1, 1.0]


@pytest.fixture(scope="module")
def game():
    """P [C, N, N], log mu and the log-policy that is answered [C, N]."""
    P, log_reference = zoo.small_games()
    return P, log_reference, zoo.normal_logits(*log_reference.shape, seed=7).log_softmax(-1)


def by_hand(P, log_reference, log_policy, beta):
    """mu exp(P pi / beta) / Z of each game, in NumPy."""
    pairs = zip(P.numpy(), log_reference.numpy(), log_policy.numpy(), strict=True)
    found = [log_softmax(mu + p @ softmax(x) / beta) for p, mu, x in pairs]
    return torch.from_numpy(np.stack(found))


def value(P, log_response, log_policy, log_reference, beta):
    """V(pi', pi) - 1/2, from its definition."""
    response, policy = log_response.exp(), log_policy.exp()
    wins = torch.einsum("ci,cij,cj->c", response, P, policy)
    costs = [(p * (p.log() - log_reference)).sum(-1) for p in (response, policy)]
    return wins - 0.5 - beta * costs[0] + beta * costs[1]


@pytest.mark.parametrize("beta", BETAS)
def test_one_step_is_the_best_response_and_attains_the_exploitability(game, beta):
    P, log_reference, start = game
    found = zoo.engine(BestResponse(), P, log_reference, start, beta).run(0, 2).log_policy
    expected = by_hand(P, log_reference, start, beta)
    for iterate in found.log_softmax(-1):
        torch.testing.assert_close(iterate, expected, atol=1e-11, rtol=0)
    attained = value(P, found[0].log_softmax(-1), start, log_reference, beta)
    exact = solvers.exploitability(P, start, log_reference, beta)
    torch.testing.assert_close(attained, exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_smaller_steps_go_there_linearly_and_no_iterate_does_better(game, share):
    """log(pi' / best response) shrinks by 1 - eta beta in a round."""
    P, log_reference, start = game
    plan = BestResponse(eta=share / zoo.BETA)
    found = zoo.engine(plan, P, log_reference, start).run(0, 20).log_policy.log_softmax(-1)
    best = by_hand(P, log_reference, start, zoo.BETA)
    apart = torch.stack([apart_by(iterate, best) for iterate in (start, *found)])
    torch.testing.assert_close(apart[1:], (1 - share) * apart[:-1], rtol=1e-8, atol=1e-13)
    exact = solvers.exploitability(P, start, log_reference, zoo.BETA)
    bounds = [value(P, iterate, start, log_reference, zoo.BETA) for iterate in found]
    assert all((bound <= exact + 1e-12).all() for bound in bounds)
    assert (bounds[-1] > bounds[0]).all()


def apart_by(one, other):
    difference = one - other
    return difference.amax(-1) - difference.amin(-1)


def test_the_answer_to_the_equilibrium_is_the_equilibrium(game):
    P, log_reference, _ = game
    nash = solvers.regularised_nash(P, log_reference, zoo.BETA).log_policy
    found = zoo.engine(BestResponse(), P, log_reference, nash).run(0, 1).log_policy[0]
    torch.testing.assert_close(found.log_softmax(-1), nash, atol=1e-8, rtol=0)


def gradient_game(start, **parts):
    return zoo.small_game(BestResponse(), start=start, realisation=GradientSteps(), **parts)


@pytest.mark.parametrize(
    "surrogate",
    [None, surrogates.policy_gradient, surrogates.ipo_regression],
    ids=["own", "gradient", "ipo"],
)
def test_the_gradient_is_zero_at_the_best_response_alone(game, surrogate):
    P, log_reference, start = game
    norms = []
    for policy in (by_hand(P, log_reference, start, zoo.BETA), start):
        played = gradient_game(start)
        played.algorithm.surrogate = surrogate
        with torch.no_grad():
            played.policy.networks["policy"].logits.copy_(policy)
        played.versions.moved("policy")
        played.training_step(zoo.all_prompts(played), 0).backward()
        norms.append(played.policy.networks["policy"].logits.grad.norm().item())
    assert norms[0] < 1e-10
    assert norms[1] > 1e-3


def test_gradient_steps_leave_the_opponent_where_it_was(game):
    P, log_reference, start = game
    trained = zoo.fit(gradient_game(start, lr=0.5), rounds=60)
    torch.testing.assert_close(trained.log_policy("opponent"), start)
    bound = value(P, trained.log_policy(), start, log_reference, zoo.BETA)
    exact = solvers.exploitability(P, start, log_reference, zoo.BETA)
    assert (bound <= exact + 1e-12).all()
    assert (bound > 0.5 * exact).all()


@pytest.mark.parametrize(
    "rollout", [Sample(4, 2), Sample(4, 3, pairs="regular(1)")], ids=["all", "regular"]
)
@pytest.mark.parametrize("surrogate", [None, surrogates.policy_gradient], ids=["own", "gradient"])
def test_sampled_gradients_are_unbiased_for_enumerated_ones(rollout, surrogate):
    plan = BestResponse(eta=0.3, surrogate=surrogate)
    draws = sampled_gradients(plan, 0, 4, rollout, draws=3000)
    assert within_four_standard_errors(draws, enumerated_gradient(plan, 0, 4))


def test_what_is_asked_is_counted(game):
    """Listed, the opponent's product is asked for once; sampled, each response meets each."""
    start = game[2]
    assert BestResponse().queries(0, 0, enumerated=True) == 0  # in a round behind the first
    assert zoo.fit(gradient_game(start), rounds=3).progress.queries_per_prompt == 1
    rounds, rollout = 3, partial(Sample, 4, 2)
    fresh = zoo.fit(gradient_game(start, rollout=rollout()), rounds)
    assert fresh.progress.queries_per_prompt == rounds * fresh.queries_per_round() == rounds * 8
    reused = zoo.fit(gradient_game(start, rollout=rollout(epochs=2)), rounds)
    assert reused.progress.queries_per_prompt == rounds * 8
    assert reused.progress.queries == 5 * reused.progress.queries_per_prompt


def test_a_step_size_is_a_number_above_0_and_fits_the_temperature():
    with pytest.raises(ValueError, match=r"^eta must be a finite number above 0, but it is 0\.0$"):
        BestResponse(eta=0.0)
    with pytest.raises(ValueError, match=r"take a smaller step$"):
        BestResponse(eta=11.0).steps(0.1, 0)
