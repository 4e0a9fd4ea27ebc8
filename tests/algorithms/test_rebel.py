"""REBEL: steps by score, on Bradley-Terry preferences of every kind, and what they lead to."""

import math
from functools import partial

import pytest
import torch
import zoo

from nlhf_zoo.algorithms import REBEL, SPPO
from nlhf_zoo.algorithms.surrogates import proximal_regression
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import ClosedForm, GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.oracles import (
    BernoulliLabels,
    BradleyTerry,
    BudgetedOracle,
    MatrixOracle,
    RuleOracle,
    SmallLanguage,
)
from nlhf_zoo.oracles.rules import shorter_wins
from nlhf_zoo.oracles.rules.scored import BradleyTerryRule
from nlhf_zoo.policies import NormalReference, TabularPolicy
from nlhf_zoo.records import Prompts, ProximalStep, Responses
from nlhf_zoo.records.random_streams import random_stream
from nlhf_zoo.solvers import exploitability, regularised_nash

C, N = 3, 5


def bradley_terry(scale=3.0):
    return BradleyTerry(C, N, scale=scale, seed=0)


def game_of(algorithm, oracle=None, lr=0.1, **parts):
    policy = TabularPolicy(NormalReference(seed=1))
    optimizer = partial(torch.optim.SGD, lr=lr)
    oracle = oracle or bradley_terry()
    return OnlineGame(policy, oracle, algorithm, zoo.BETA, optimizer=optimizer, **parts)


# ---- what it is ----


def test_in_closed_form_it_is_the_exponentiated_step():
    """pi_t exp(t eta r) after t rounds: on a Bradley-Terry game an exact natural gradient step."""
    game = zoo.fit(game_of(REBEL(eta=0.4)), rounds=7)
    r, mu = game.oracle.score_table, game.policy.log_reference
    expected = (mu + 7 * 0.4 * r).log_softmax(-1)
    torch.testing.assert_close(game.log_policy(), expected, rtol=0, atol=1e-12)
    assert game.progress.queries_per_prompt == 7


def test_on_a_transitive_preference_it_solves_the_game_without_regularisation():
    game = zoo.fit(game_of(REBEL()), rounds=100)
    table, mu = game.oracle.table, game.policy.log_reference
    assert exploitability(table, mu, mu, 0.0).min() > 0.1
    assert exploitability(table, game.log_policy(), mu, 0.0).max() < 1e-6
    assert torch.equal(game.log_policy().argmax(-1), game.oracle.score_table.argmax(-1))


def test_regularised_it_goes_to_the_optimum_of_rlhf_and_not_to_the_equilibrium():
    """mu exp(r / beta) / Z; and stays there."""
    game = zoo.fit(game_of(REBEL(eta=5.0, regularised=True)), rounds=100)
    table, mu, r = game.oracle.table, game.policy.log_reference, game.oracle.score_table
    optimum = (mu + r / zoo.BETA).log_softmax(-1)
    torch.testing.assert_close(game.log_policy(), optimum, rtol=1e-9, atol=1e-9)
    nash = regularised_nash(table, mu, zoo.BETA).log_policy
    assert (optimum - nash).abs().max() > 1
    assert exploitability(table, optimum, mu, zoo.BETA).max() > 1e-3


@pytest.mark.parametrize("regularised", [False, True])
def test_by_gradients_its_minimiser_is_the_step(regularised):
    """Enumerated: at the closed form's policy the gradient is zero, and beside it it is not."""
    algorithm = REBEL(eta=0.7, regularised=regularised)
    game = game_of(algorithm, realisation=GradientSteps())
    zoo.scatter_players(game)
    r, mu = game.oracle.score_table, game.policy.log_reference
    weight = 0.7 * zoo.BETA * regularised
    logits = game.policy.networks["policy"].logits
    new = (1 - weight) * game.log_policy("anchor") + weight * mu + 0.7 * r
    norms = []
    for beside in (0.0, 0.01):
        with torch.no_grad():
            logits.copy_(new + beside * zoo.normal_logits(N, seed=3))
        loss = game.training_step(zoo.all_prompts(game), 0)
        norms.append(torch.autograd.grad(loss, logits)[0].norm().item())
    assert norms[0] < 1e-12
    assert norms[1] > 1e-5


def test_one_step_by_hand():
    """Of four sampled responses; the score is asked for once each, and nothing is compared."""
    game = game_of(REBEL(eta=0.7), rollout=Sample(4), realisation=GradientSteps(), lr=0.5)
    zoo.scatter_players(game)
    logits, anchor = (
        game.policy.networks[player].logits.detach().clone() for player in ("policy", "anchor")
    )
    logits.requires_grad_()
    rng = random_stream(0, 0, 0, torch.device("cpu"))
    drawn = torch.multinomial(anchor.softmax(-1), 4, True, generator=rng)
    r, loss = game.oracle.score_table, 0
    for row, actions in enumerate(drawn):
        d = logits[row].log_softmax(-1) - anchor[row].log_softmax(-1) - 0.7 * r[row]
        pairs = [(d[a] - d[b]) ** 2 for i, a in enumerate(actions) for b in actions[:i]]
        loss = loss + sum(pairs) / 6
    expected = logits - 0.5 * torch.autograd.grad(loss / C, logits)[0]
    game.oracle.forward = None  # nothing is compared
    zoo.fit(game, 1)
    found = game.policy.networks["policy"].logits.detach()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)
    assert game.progress.queries_per_prompt == 4
    assert game.progress.queries == 4 * C


def test_scores_are_not_bounded_by_what_a_probability_holds():
    """In float32 P is 1 from a difference of 17 on, and its log-odds are infinite."""
    oracle = BradleyTerry(C, N, scale=60.0, seed=0, dtype="float32")
    assert (oracle.table == 1).any()
    game = zoo.fit(game_of(REBEL(eta=0.01), oracle), rounds=1)
    r = oracle.score_table.double()
    expected = (game.policy.log_reference + 0.01 * r).log_softmax(-1)
    torch.testing.assert_close(game.log_policy(), expected, rtol=1e-6, atol=1e-6)


def test_log_odds_against_any_opponent_are_the_score_up_to_a_constant():
    """So with exact log-odds for its payoff SPPO's regression on pairs is REBEL."""
    P, r = bradley_terry().table, bradley_terry().score_table
    opponent = zoo.normal_logits(C, N, seed=4).softmax(-1)
    log_odds = ((P / (1 - P)).log() @ opponent[:, :, None])[:, :, 0]
    difference = log_odds - r
    assert (difference - difference[:, :1]).abs().max() < 1e-9
    (step,) = SPPO(surrogate=proximal_regression).steps(zoo.BETA, 0)
    (ours,) = REBEL(step.step_size).steps(zoo.BETA, 0)
    assert {k: w for k, w in ours.centre.items() if w} == step.centre
    assert ours.sampler == step.sampler


# ---- whose scores these are ----


def text_responses(*rows):
    tokens = torch.zeros(len(rows), len(rows[0]), 1, dtype=torch.long)
    weight = torch.full(tokens.shape[:2], 1 / len(rows[0]))
    return Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight, text=rows)


def of_length(prompt, response):
    return None if response == "?" else 100.0 * len(response) - len(prompt)


PROMPTS = Prompts(torch.arange(2), text=["a", "bb"])
TEXTS = text_responses(["x", "xyz", "x", "?"], ["", "xy", "?", "x"])


@pytest.mark.parametrize(
    "oracle",
    [bradley_terry(), SmallLanguage(cycle=0.0, num_letters=3, length=2)],
    ids=lambda oracle: type(oracle).__name__,
)
def test_preferences_of_a_table_are_those_of_its_scores(oracle):
    r = oracle.score_table
    expected = torch.sigmoid(r[:, :, None] - r[:, None, :])
    torch.testing.assert_close(oracle.table, expected, rtol=1e-12, atol=1e-12)
    actions = torch.randint(0, r.shape[1], (len(r), 4), generator=torch.Generator().manual_seed(0))
    tokens = actions[:, :, None]
    mask, weight = torch.ones_like(tokens, dtype=torch.bool), torch.full((len(r), 4), 0.25)
    drawn = Responses(tokens, mask, weight)
    scores, valid = oracle.score(oracle.prompts, drawn)
    assert valid.all()
    assert torch.equal(scores, r.gather(1, actions))
    P = oracle(oracle.prompts, drawn, drawn).preference
    torch.testing.assert_close(P, torch.sigmoid(scores[:, :, None] - scores[:, None, :]))


def test_a_rule_of_scores_is_asked_for_each_different_text_once():
    oracle = RuleOracle(BradleyTerryRule(of_length, temperature=50.0))
    scores, valid = oracle.score(PROMPTS, TEXTS)
    assert valid.tolist() == [[True, True, True, False], [True, True, False, True]]
    expected = [[99 / 50, 299 / 50, 99 / 50, 0], [-2 / 50, 198 / 50, 0, 98 / 50]]
    assert scores.tolist() == [pytest.approx(row) for row in expected]
    assert oracle.ledger["queries"] == 7
    assert oracle.ledger["invalid"] == 2
    compared = oracle(PROMPTS, TEXTS, TEXTS)
    odds = torch.sigmoid(scores[:, :, None] - scores[:, None, :])
    both = valid[:, :, None] & valid[:, None, :]
    torch.testing.assert_close(compared.preference[both].double(), odds[both], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        (lambda prompt, response: math.inf, "gave the score inf, and no finite number nor None"),
        (lambda prompt, response: {}["none"], "failed with KeyError: 'none'; prompt 'a'"),
    ],
)
def test_a_rule_without_a_number_ends_the_run_in_one_sentence(score, sentence):
    with pytest.raises(UserError, match=sentence):
        RuleOracle(BradleyTerryRule(score)).score(PROMPTS, TEXTS)


def test_a_rule_needs_a_temperature():
    with pytest.raises(UserError, match="finite temperature above 0, but it is 0"):
        BradleyTerryRule(of_length, temperature=0)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_budget_counts_scores(sampled):
    oracle = BudgetedOracle(bradley_terry(), max_queries=2 * C * (4 if sampled else 1))
    rollout = Sample(4) if sampled else Enumerate()
    game = game_of(REBEL(), oracle, rollout=rollout, realisation=GradientSteps())
    with pytest.raises(OracleStoppedError, match="the oracle's budget is spent"):
        zoo.fit(game, 3)
    assert game.progress.round == 2
    texts = BudgetedOracle(RuleOracle(BradleyTerryRule(of_length)), max_queries=6)
    with pytest.raises(OracleStoppedError, match="max_queries 6"):
        texts.score(PROMPTS, TEXTS)


@pytest.mark.parametrize(
    "oracle",
    [
        MatrixOracle(bradley_terry().table),
        BernoulliLabels(bradley_terry()),
        SmallLanguage(num_letters=3, length=2),
        RuleOracle(shorter_wins),
    ],
    ids=lambda oracle: type(oracle).__name__,
)
def test_an_oracle_without_scores_is_refused(oracle):
    name = type(oracle).__name__
    assert not oracle.has_scores
    with pytest.raises(UserError, match=f"REBEL takes scores of single responses, and {name} giv"):
        game_of(REBEL(), oracle, rollout=Sample(4), realisation=GradientSteps())
    with pytest.raises(NotImplementedError, match=f"{name} has no scores"):
        oracle.score(PROMPTS, TEXTS)


def test_no_pairs_are_designed_or_drawn_ahead():
    for options, sentence in [
        ({"pairs": "circle"}, "REBEL takes scores .* model.rollout.pairs circle"),
        ({"epochs": 2, "ahead": True}, "and REBEL takes another"),
    ]:
        with pytest.raises(UserError, match=sentence):
            game_of(REBEL(), rollout=Sample(4, **options), realisation=GradientSteps())


def test_a_step_is_by_score_or_against_opponents():
    for options in ({"payoff": ()}, {"payoff": ((1.0, {"policy": 1.0}),), "by_score": True}):
        with pytest.raises(ValueError, match="has opponents, or else it is taken by score"):
            ProximalStep({"policy": 1.0}, step_size=1.0, **options)
    with pytest.raises(ValueError, match="has no pairs"):
        ProximalStep({"policy": 1.0}, (), 1.0, by_score=True, self_play=True)


def test_a_held_rollout_is_scored_once():
    game = game_of(REBEL(), rollout=Sample(6, epochs=3, held_out=0), realisation=GradientSteps())
    zoo.fit(game, 2, data=TablePrompts())
    assert game.progress.queries_per_prompt == 12
    assert game.trainer.global_step == 6


def test_the_closed_form_needs_the_scores():
    P, mu = zoo.small_games()
    players = {"policy": mu, "anchor": mu}
    with pytest.raises(ValueError, match="REBEL takes scores of single actions, and this game has"):
        zoo.ClosedFormRounds(REBEL(), zoo.BETA, P, mu, players)
    assert isinstance(game_of(REBEL()).realisation, ClosedForm)
