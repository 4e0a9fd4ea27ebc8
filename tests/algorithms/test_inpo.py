"""INPO: its loss on labels, whose minimiser is the step, and what its closed form is."""

import pytest
import torch
import zoo
from zoo import engine, normal_logits, small_games

from nlhf_zoo.algorithms import INPO, OnlineIPO
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles import BernoulliLabels


def test_in_exact_form_it_is_mirror_descent():
    P, mu = small_games()
    start = normal_logits(*mu.shape, seed=4)
    found, expected = (
        engine(algorithm, P, mu, start).run(0, 50).log_policy.log_softmax(-1)
        for algorithm in (INPO(0.7), OnlineIPO(0.7))
    )
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_on_a_label_the_target_is_half_the_step_for_the_winner():
    """(h(winner, loser) - eta/2)^2, which is the paper's target 1 / (2 eta) for its inverse eta."""
    eta, beta = 1 / 0.4, 0.1
    game = zoo.small_game(
        INPO(eta), 5, rollout=Sample(2), realisation=GradientSteps(),
        wrap=lambda oracle: BernoulliLabels(oracle, seed=3), beta=beta,
    )  # fmt: skip
    zoo.scatter_players(game)
    prompts = zoo.all_prompts(game)
    responses, payoffs = game.play_and_judge(game.step, prompts)
    found = game.improve(game.step, prompts, responses, payoffs)
    now, anchor, mu = (game.log_policy(p) for p in ("policy", "anchor", "reference"))
    expected, labels = 0.0, set()
    for row in range(5):
        label = payoffs.preference[row, 0, 1].item()
        labels.add(label)
        winner, loser = responses.actions[row].tolist()[:: 1 if label else -1]

        def d(x, row=row, winner=winner, loser=loser):
            return x[row, winner] - x[row, loser]

        h = d(now) - eta * beta * d(mu) - (1 - eta * beta) * d(anchor)
        expected += (h - 0.5 / 0.4) ** 2 / 5
    assert labels >= {0.0, 1.0}
    torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize("eta", [0.3, 3.0])
def test_over_independent_labelled_pairs_the_minimiser_is_the_step(eta):
    """The paper's claim, exactly: sum pi pi' P(y > y') (h - eta/2)^2 has no gradient there."""
    P, mu = small_games()
    pi, beta = normal_logits(*mu.shape, seed=4).log_softmax(-1), zoo.BETA
    new = engine(INPO(eta), P, mu, pi).run(0, 1).log_policy[0].clone().requires_grad_()
    residual = new - (1 - eta * beta) * pi - eta * beta * mu
    h = residual[:, :, None] - residual[:, None, :]
    law = pi.exp()[:, :, None] * pi.exp()[:, None, :] * P
    loss = (law * (h - eta / 2) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, new)
    assert gradient.abs().max() < 1e-12
    assert loss > 0.01 * eta**2  # what labels say is never explained
