"""XPO: online DPO, and a term on responses of the reference that nobody judges."""

import pytest
import torch
import zoo
from torch.nn.functional import logsigmoid

from nlhf_zoo.algorithms import XPO, MovingMagnet, OnlineDPO
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.records.random_streams import random_stream

BETA, ALPHA = zoo.BETA, 0.3


def game_of(algorithm, rollout=None, **parts):
    game = zoo.small_game(
        algorithm, rollout=rollout or Enumerate(), realisation=GradientSteps(), **parts
    )
    zoo.scatter_players(game)
    return game


def logits_after(game, rounds=2, **trainer):
    return zoo.fit(game, rounds, **trainer).policy.networks["policy"].logits.detach()


@pytest.mark.parametrize("rollout", [Enumerate(), Sample(4), Sample(4, epochs=2, held_out=0)])
def test_without_the_term_it_is_online_dpo_bit_for_bit(rollout):
    found, expected, other = (
        logits_after(game_of(a, rollout)) for a in (XPO(alpha=0), OnlineDPO(), XPO(alpha=1e-5))
    )
    assert torch.equal(found, expected)
    assert not torch.equal(other, expected)


def played(algorithm):
    game, rng = game_of(algorithm, Sample(5)), random_stream(0, 0, 0, torch.device("cpu"))
    return game.rollout.play(game.step, game.policy, zoo.all_prompts(game), rng)[0]


def test_what_is_judged_is_what_online_dpo_judges():
    ours = played(XPO(alpha=0.1))
    assert torch.equal(ours.tokens, played(OnlineDPO()).tokens)
    assert not torch.equal(ours.explored.tokens, ours.tokens)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_one_step_by_hand(micro_batches):
    """Of responses that the game draws; plain torch otherwise."""
    game = game_of(XPO(ALPHA), Sample(4), lr=0.5, micro_batches=micro_batches)
    logits = game.policy.networks["policy"].logits.detach().clone().requires_grad_()
    P, mu, law = game.oracle.table, game.policy.log_reference, logits.detach().log_softmax(-1)
    rng, parts = random_stream(0, 0, 0, torch.device("cpu")), []
    for rows in torch.arange(len(P)).tensor_split([2] if micro_batches == 2 else []):
        drawn = [torch.multinomial(x[rows].exp(), 4, True, generator=rng) for x in (law, mu)]
        parts.append(drawn)
    ours, theirs = (torch.cat(each) for each in zip(*parts, strict=True))
    loss = 0
    for row, (p, log_pi) in enumerate(zip(P, logits.log_softmax(-1), strict=True)):
        h = log_pi - mu[row]
        for i, a in enumerate(ours[row]):
            for j, b in enumerate(ours[row]):
                d = BETA * (h[a] - h[b])
                entropy = -p[a, b] * logsigmoid(d) - p[b, a] * logsigmoid(-d)
                loss = loss + (entropy / 12 if i != j else 0)
        loss = loss + ALPHA * sum(log_pi[c] for c in theirs[row]) / 4
    expected = logits - 0.5 * torch.autograd.grad(loss / len(P), logits)[0]
    torch.testing.assert_close(logits_after(game, 1), expected.detach(), rtol=1e-10, atol=1e-12)
    assert game.progress.queries_per_prompt == 6  # the pairs of four: the reference's cost none
    assert game.progress.tokens == 8 * len(P)


def test_what_the_reference_writes_goes_down():
    """With the sign of the paper; a bonus would be the other one."""
    before = game_of(OnlineDPO()).log_policy()
    with_term, without = game_of(XPO(ALPHA)), game_of(OnlineDPO())
    for game in (with_term, without):
        zoo.fit(game, 3)
    mu = with_term.policy.log_reference.exp()
    ours, plain = ((mu * (g.log_policy() - before)).sum(-1) for g in (with_term, without))
    assert (ours < plain).all()
    logged = with_term.trainer.callback_metrics["train/explored_log_prob"]
    assert logged < (mu * before).sum(-1).mean()


def test_where_it_stands_still():
    """The gradient is -2 beta pi (U - alpha (mu/pi - 1) / (2 beta)), U what is not explained."""
    game = game_of(XPO(ALPHA))
    P, mu, pi = game.oracle.table, game.policy.log_reference, game.log_policy()
    h = BETA * ((pi - mu)[:, :, None] - (pi - mu)[:, None, :])
    unexplained = ((P - torch.sigmoid(h)) * pi.exp()[:, None, :]).sum(-1)
    fixed_at = ALPHA * ((mu - pi).exp() - 1) / (2 * BETA)
    expected = -2 * BETA * pi.exp() * (unexplained - fixed_at) / len(P)
    loss = game.training_step(zoo.all_prompts(game), 0)
    (found,) = torch.autograd.grad(loss, game.policy.networks["policy"].logits)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    lost = pi.exp() < ALPHA * mu.exp() / (2 * BETA + ALPHA)
    assert lost.any()
    assert (found[lost] > 0).all()  # falls on, whoever wins


def test_a_prompt_that_is_not_judged_does_not_explore():
    game = game_of(XPO(ALPHA), wrap=lambda oracle: zoo.Silent(oracle, prompts=(1,)))
    before = game.policy.networks["policy"].logits.detach().clone()
    moved = (logits_after(game, 1) != before).any(-1)
    assert moved.tolist() == [True, False, True, True, True]


def test_a_magnet_draws_in_place_of_the_reference():
    (step,) = MovingMagnet(XPO(ALPHA), every=3).steps(BETA, 0)
    assert step.explored == {"magnet": 1.0}


def test_a_rollout_that_draws_nobody_is_refused():
    game = game_of(XPO(ALPHA), Sample(4))
    prompts, ours = zoo.all_prompts(game), played(OnlineDPO())
    with pytest.raises(ValueError, match="draw them in the rollout's `play`"):
        game.improve(game.step, prompts, ours, game.judge(game.step, prompts, ours, [ours]))


def test_a_weight_below_zero_is_refused():
    with pytest.raises(ValueError, match="alpha must be a finite number of at least 0"):
        XPO(alpha=-1e-5)
