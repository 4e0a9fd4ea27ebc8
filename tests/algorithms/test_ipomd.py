"""IPO-MD: between online IPO and Nash-MD, and where its fixed points lie."""

import pytest
import torch
import zoo

from nlhf_zoo.algorithms import IPOMD, NashMD, OnlineIPO
from nlhf_zoo.data.tables import games
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.records import PLAIN
from nlhf_zoo.solvers import exploitability


@pytest.mark.parametrize("weight", [0.0, 0.125, 1.0])
def test_its_exact_step_is_that_of_nash_md_with_its_mixture(weight):
    P, mu = zoo.small_games()
    start = zoo.normal_logits(*mu.shape, seed=4)
    rivals = [NashMD(0.3, weight)] + ([OnlineIPO(0.3)] if weight == 0 else [])
    found = zoo.engine(IPOMD(0.3, weight), P, mu, start).run(0, 50).log_policy.log_softmax(-1)
    for rival in rivals:
        expected = zoo.engine(rival, P, mu, start).run(0, 50).log_policy.log_softmax(-1)
        assert (found - expected).abs().max() < 1e-12


def test_without_a_mixture_it_is_online_ipo():
    assert [*IPOMD(0.3, 0.0).steps(zoo.BETA, 0)] == [*OnlineIPO(0.3).steps(zoo.BETA, 0)]


def test_both_responses_of_a_pair_are_drawn_from_the_mixture():
    """Not the policy's against the mixture's: their law, and who they meet."""
    game = zoo.small_game(
        IPOMD(mixture=0.6), wrap=zoo.Spy, rollout=Sample(4), realisation=GradientSteps()
    )
    zoo.scatter_players(game)
    prompts, drawn = zoo.all_prompts(game), []
    sample = game.policy.sample
    game.policy.sample = lambda who, *rest: drawn.append(dict(who)) or sample(who, *rest)
    game.training_step(prompts, 0)
    assert drawn == [{"policy": 0.4, "reference": 0.6}]
    assert game.oracle.asked == [(4, 4, True)]
    law = game.policy.distribution(drawn[0], prompts, PLAIN)
    parts = [game.policy.distribution({p: 1.0}, prompts, PLAIN) for p in ("policy", "reference")]
    torch.testing.assert_close(law, (0.4 * parts[0] + 0.6 * parts[1]).log_softmax(-1))


def test_the_fixed_point_moves_with_the_weight():
    """What is left of the reference's exploitability grows from nothing; the page has figures."""
    P, mu = games.uniform_random(10, 10, seed=0), zoo.normal_logits(10, 10, seed=1).log_softmax(-1)
    left = []
    for weight in (0.0, 0.125, 0.25, 0.5, 1.0):
        algorithm = IPOMD(1.0, weight)
        end = zoo.engine(algorithm, P, mu, mu).run(0, 600).log_policy[-1].log_softmax(-1)
        left.append(exploitability(P, end, mu, zoo.BETA).mean().item())
        assert algorithm.last_iterate == (weight == 0)
    assert left[0] < 1e-12
    assert left[1] > 1e-5
    assert left == sorted(left)
