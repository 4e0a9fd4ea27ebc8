"""Draws of the bound in a game: unbiased, counted, and never too high for want of an answer.

Statistics: four standard errors, which a correct mean misses with probability 6e-5; seeds are
fixed.
"""

import pytest
import torch
import zoo
from tiny_models import scatter_adapters

from nlhf_zoo import (
    CausalLMPolicy,
    GradientSteps,
    Sample,
    SmallLanguage,
    SmallLanguageModel,
    solvers,
)
from nlhf_zoo.algorithms.best_response import BestResponse
from nlhf_zoo.data.prompts import table_prompts
from nlhf_zoo.game.lower_bound import draw_bound
from nlhf_zoo.game.online_game import OnlineGame

NUM = 1000


def tabular(wrap=lambda oracle: oracle):
    """A game on a table, whose players are all different policies."""
    game = zoo.small_game(
        BestResponse(), realisation=GradientSteps(), rollout=Sample(4, 2), wrap=wrap
    )
    zoo.scatter_players(game)
    return game


def language():
    """Likewise on the small language."""
    oracle = SmallLanguage()
    policy = CausalLMPolicy(SmallLanguageModel(), max_new_tokens=3)
    game = OnlineGame(
        policy, oracle, BestResponse(), rollout=Sample(4, 2), realisation=GradientSteps()
    )
    scatter_adapters(game.policy, 0.4)
    return game


def exact(game):
    """The bound of each prompt by listing."""
    law = {p: game.log_policy(p).double() for p in ("policy", "opponent", "reference")}
    response, policy, mu = law.values()
    wins = solvers.win_rate(game.oracle.table, response, policy)
    return wins - 0.5 + game.beta * (solvers.kl(policy, mu) - solvers.kl(response, mu))


@pytest.mark.parametrize("make", [tabular, language])
def test_draws_are_unbiased_and_no_random_stream_is_touched(make):
    game = make()
    prompts, before = table_prompts(game.oracle), torch.get_rng_state()
    found = draw_bound(game, prompts, NUM, seed=0, stream=0, rows=900)
    error = found.draws.std(-1) / NUM**0.5
    assert found.draws.shape == (len(prompts), NUM)
    assert ((found.draws.mean(-1) - exact(game)).abs() < 4 * error).all()
    assert (error < 0.03).all()
    assert torch.equal(before, torch.get_rng_state())


def test_draws_are_those_of_their_seed_and_stream():
    game = tabular()
    prompts = table_prompts(game.oracle)
    first, again, others, others_too = (
        draw_bound(game, prompts, 8, seed, stream, rows=16).draws
        for seed, stream in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(first, again)
    assert not any(torch.isclose(first, other).all() for other in (others, others_too))


def test_two_answers_a_draw_are_asked_for_and_nothing_else():
    game = tabular(wrap=zoo.Spy)
    found = draw_bound(game, table_prompts(game.oracle.oracle), 7, 0, 0, rows=3)
    assert found.answers == 5 * 7 * 2
    assert {asked[:2] for asked in game.oracle.asked} == {(1, 1)}


def test_what_is_not_answered_lowers_the_bound():
    """Also where the answer that is marked as invalid would say that all is won."""
    told = tabular()
    prompts = table_prompts(told.oracle)
    whole = draw_bound(told, prompts, NUM, 0, 0, rows=5000)
    for lie in (float("nan"), 1.0):
        game = tabular(wrap=lambda oracle, lie=lie: zoo.Silent(oracle, action=2, lie=lie))
        found = draw_bound(game, prompts, NUM, 0, 0, rows=5000)
        assert found.invalid > 0
        assert (found.draws <= whole.draws + 1e-12).all()
        assert found.draws.mean() < whole.draws.mean()
    assert whole.invalid == 0
