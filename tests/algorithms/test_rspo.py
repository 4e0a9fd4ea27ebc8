"""RSPO: with the reverse KL it is mirror descent, and what the forward KL adds."""

from dataclasses import replace

import pytest
import torch
import zoo

from nlhf_zoo.algorithms import RSPO, SPPO, OnlineIPO
from nlhf_zoo.algorithms.surrogates import policy_gradient
from nlhf_zoo.data.tables import games
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.solvers import exploitability, regularised_nash

ETA = 0.3


@pytest.fixture(scope="module")
def game():
    P, mu = zoo.small_games()
    return P, mu, zoo.normal_logits(*mu.shape, seed=4)


def gradient(algorithm, at):
    """Of the loss at a policy whose anchor is itself, over all responses [C, N]."""
    found = zoo.small_game(algorithm, realisation=GradientSteps(), start=at.log_softmax(-1))
    found.training_step(zoo.all_prompts(found), 0).backward()
    return found.policy.networks["policy"].logits.grad


@pytest.mark.parametrize("weight", [None, 0.5])
def test_the_reverse_kl_is_mirror_descent(game, weight):
    """Round by round it is online IPO, of a game at the divergence's weight."""
    P, mu, start = game
    beta = zoo.BETA if weight is None else weight
    found = zoo.engine(RSPO(ETA, reverse_kl=weight), P, mu, start).run(0, 50)
    expected = zoo.engine(OnlineIPO(ETA), P, mu, start, beta).run(0, 50)
    difference = found.log_policy.log_softmax(-1) - expected.log_policy.log_softmax(-1)
    assert difference.abs().max() < 1e-12
    # And its gradient is 2 eta that of the self-play policy gradient.
    if weight is None:
        descent = gradient(OnlineIPO(ETA, surrogate=policy_gradient), start)
        torch.testing.assert_close(gradient(RSPO(ETA), start), 2 * ETA * descent)


def test_each_divergence_adds_its_own_gradient(game):
    """2 eta times the weight, at the anchor: of autograd's KL(pi || mu) and KL(mu || pi)."""
    _, mu, start = game
    logits = start.log_softmax(-1).requires_grad_()
    log_policy = logits.log_softmax(-1)
    reverse = (log_policy.exp() * (log_policy - mu)).sum()
    forward = -(mu.exp() * log_policy).sum()
    plain = gradient(SPPO(ETA), start)
    assert torch.equal(gradient(RSPO(ETA, reverse_kl=0.0), start), plain)
    for name, divergence in (("reverse_kl", reverse), ("forward_kl", forward)):
        (by_hand,) = torch.autograd.grad(divergence, logits, retain_graph=True)
        weights = {"reverse_kl": 0.0, name: 0.2}
        added = gradient(RSPO(ETA, **weights), start) - plain
        torch.testing.assert_close(added, 2 * ETA * 0.2 * by_hand / len(mu))


def stationary(P, mu, reverse, forward):
    """Where P pi - reverse log(pi/mu) + forward mu/pi is the same for all y, by its flow."""
    x = mu.clone()
    for _ in range(3000):
        worth = (P @ x.exp()[:, :, None])[:, :, 0] - reverse * (x - mu) + forward * (mu - x).exp()
        x = (x + 0.3 * (worth - (x.exp() * worth).sum(-1, keepdim=True))).log_softmax(-1)
    return x


@pytest.mark.parametrize("weights", [(0.1, 0.05), (0.0, 0.1)])
def test_with_the_forward_kl_it_stands_still_elsewhere(game, weights):
    P, mu, _ = game
    reverse, forward = weights
    algorithm = RSPO(ETA, reverse_kl=reverse, forward_kl=forward)
    assert not algorithm.closed_form
    assert not algorithm.last_iterate
    there = stationary(P, mu, *weights)
    assert gradient(algorithm, there).norm() < 1e-9
    assert gradient(algorithm, regularised_nash(P, mu, zoo.BETA).log_policy).norm() > 1e-4


def test_on_rock_paper_scissors_the_last_iterate_converges_where_that_of_sppo_leaves():
    P = games.cyclic(3, 0.9)
    mu = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    ends = [
        exploitability(P, zoo.engine(a, P, mu, mu).run(0, 2000).log_policy.log_softmax(-1), mu, 0.1)
        for a in (RSPO(0.1), SPPO(0.1))
    ]
    assert ends[0][-1].max() < 1e-12
    assert ends[1][-500:].min() > 0.01


def test_steps_that_are_too_long_and_weights_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"eta \* reverse_kl <= 1, but it is 3"):
        RSPO(ETA, reverse_kl=10.0).steps(zoo.BETA, 0)
    for name in ("reverse_kl", "forward_kl"):
        with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 0"):
            RSPO(ETA, **{name: -0.1})


def test_the_forward_term_asks_for_no_query():
    """The reference's responses are drawn, and nobody judges them."""
    algorithm = RSPO(forward_kl=0.1)
    trained = zoo.fit(
        zoo.small_game(algorithm, rollout=Sample(4), realisation=GradientSteps()), rounds=2
    )
    assert trained.progress.queries_per_prompt == 2 * 6 == 2 * algorithm.queries(4, 1, False)
    (step,) = algorithm.steps(zoo.BETA, 0)
    assert step == replace(RSPO().steps(zoo.BETA, 0)[0], explored={"reference": 1.0})
