"""What once went wrong without a word; each test failed on the fault that it names."""

import pytest
import torch
from zoo import fit, normal_logits, small_game

from nlhf_zoo.algorithms import EGPO, MovingMagnet, NashMP, OnlineIPO
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles import BradleyTerry
from nlhf_zoo.policies import NormalReference
from nlhf_zoo.records import Decoding


def game_of(algorithm, num_games=2, lr=1.0, **parts):
    return small_game(algorithm, num_games, lr=lr, **parts)


def test_all_steps_of_a_round_see_the_same_prompts():
    """With a new batch each step, the lookahead was trained on prompts that were never improved."""
    whole = fit(game_of(EGPO(), lr=0.2, realisation=GradientSteps()), rounds=2)
    parts = fit(
        game_of(EGPO(), lr=0.1, realisation=GradientSteps()),  # a mean over one prompt, not two
        rounds=4,
        data=TablePrompts(batch_size=1),
    )
    moved = (whole.log_policy() - whole.log_policy("reference")).abs().amax(-1)
    assert (moved > 1e-3).all()
    torch.testing.assert_close(parts.log_policy(), whole.log_policy(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_products_are_remembered_by_prompt(accumulate):
    """Only the last batch's product was kept, so that inner steps cost a query each."""
    algorithm = NashMP(inner_steps=3)
    game = fit(
        game_of(algorithm, num_games=4, realisation=GradientSteps()),
        rounds=5,
        data=TablePrompts(batch_size=2),
        accumulate_grad_batches=accumulate,
    )
    assert game.progress.queries_per_prompt == 5 * algorithm.queries(0, 0, enumerated=True)
    assert game.progress.queries == 2 * accumulate * 2 * 5  # prompts, batches, steps, rounds


def test_the_magnet_starts_at_the_reference():
    """It started where the policy starts, and so regularised to another policy."""
    start = normal_logits(2, 6, seed=8)
    inner = fit(game_of(EGPO(), start=start), rounds=40)
    outer = fit(game_of(MovingMagnet(EGPO(), every=1000), start=start), rounds=40)
    torch.testing.assert_close(outer.log_policy(), inner.log_policy(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rollout", [None, Sample(4, 4)])
def test_divergence_stops_the_run(rollout):
    """It went on to the end of the budget with NaN, or ended in a traceback of torch's."""
    uniform = Decoding(temperature=float("inf"))  # so that no weight vanishes on the way
    algorithm = OnlineIPO(self_play=False, scored=uniform)
    game = game_of(algorithm, lr=1e6, realisation=GradientSteps(), rollout=rollout)
    with pytest.raises(DivergenceError, match="diverged"):
        fit(game, rounds=200)


@pytest.mark.parametrize("algorithm", [OnlineIPO(eta=20.0), EGPO(eta=11.0)])
def test_steps_past_the_reference_are_refused(algorithm):
    """A negative weight was played, and solved nothing."""
    with pytest.raises(UserError, match="not negative"):
        game_of(algorithm)


def test_a_reference_is_not_the_score_of_its_game():
    """Both drew from the run's seed: the reference was the Bradley-Terry answer."""
    torch.manual_seed(0)
    oracle = BradleyTerry(num_games=1, num_actions=50)
    log_mu = NormalReference().log_prob(oracle.support)
    scores = oracle.table[0].logit(eps=1e-12).mean(-1)
    correlation = torch.corrcoef(torch.stack([scores, log_mu[0]]))[0, 1]
    assert correlation.abs() < 0.55  # 4 standard errors of 50 independent pairs


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_a_precision_that_rounds_the_policy_is_refused(precision):
    """A Trainer made in Python trained a rounded policy; `nlhf fit` alone refused it."""
    game = game_of(EGPO(), realisation=GradientSteps())
    with pytest.raises(UserError, match=f"{precision} would round what is trained"):
        fit(game, rounds=1, precision=precision)
    assert {tensor.dtype for tensor in game.policy.parameters()} == {torch.float64}


def test_double_precision_of_the_trainer_is_refused():
    """It ended in a traceback, for prompts cannot be changed."""
    game = game_of(EGPO(), realisation=GradientSteps())
    with pytest.raises(UserError, match="64-true would change the type of prompts"):
        fit(game, rounds=1, precision="64-true")


def test_undeclared_players_are_named(monkeypatch):
    monkeypatch.setattr(EGPO, "players", ())
    with pytest.raises(UserError, match="player lookahead, which it does not declare"):
        game_of(EGPO())
