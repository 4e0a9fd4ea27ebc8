"""What is asked, what is remembered of it, and what a label says."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import zoo
from torch.nn.functional import softplus

from nlhf_zoo import algorithms
from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.algorithms.surrogates import ipo_regression
from nlhf_zoo.game.payoffs import PayoffEstimator, Versions
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.records import Batch, Prompts, ProximalStep, Responses


class AgainstTheAnchor(PolicyOptimizer):
    """Three steps against one frozen player, which moves every other round."""

    paper = "arXiv:0000.00000"
    last_iterate = False
    players = ("anchor", "lookahead")
    surrogate = staticmethod(ipo_regression)

    def steps(self, beta, round):
        one = ProximalStep(
            centre={"policy": 1.0},
            payoff=((1.0, {"anchor": 1.0}),),
            step_size=0.1,
            writes="lookahead",
            gradient_steps=2,
        )
        return [one, one, replace(one, writes="policy")]

    def end_round(self, players, round):
        players.copy_("policy", "anchor")


def test_the_default_queries_count_a_remembered_product_once():
    algorithm = AgainstTheAnchor()
    assert algorithm.queries(0, 0, enumerated=True) == 1
    assert algorithm.queries(4, 3, enumerated=False) == 3 * 2 * 4 * 3
    P, log_reference = zoo.small_games()
    trajectory = zoo.engine(algorithm, P, log_reference, log_reference).run(0, 3)
    assert trajectory.queries.tolist() == [1, 2, 3]
    game = zoo.small_game(algorithm, realisation=GradientSteps(), rollout=Enumerate())
    zoo.fit(game, 3)
    assert game.progress.queries_per_prompt == 3 * game.queries_per_round() == 3


def test_a_hard_label_of_a_tie_is_a_half():
    """- p log sigma(beta D) - (1 - p) log sigma(-beta D) with p in {0, 1/2, 1}, by hand."""
    beta, difference = 0.5, torch.tensor(0.8, dtype=torch.float64)
    log_prob = torch.stack([difference, torch.zeros_like(difference)])[None]
    half = torch.full((1, 2), 0.5, dtype=torch.float64)
    batch = Batch(
        log_prob=log_prob,
        centre_log_prob=torch.zeros_like(log_prob),
        reference_log_prob=torch.zeros_like(log_prob),
        payoff=half,
        weight=half,
        beta=beta,
        enumerated=False,
        self_play=True,
        pair_weight=torch.tensor([[[0.0, 0.5], [0.5, 0.0]]], dtype=torch.float64),
    )
    algorithm = algorithms.OnlineDPO(hard=True)
    (step,) = algorithm.steps(beta, 0)
    seen = []
    surrogate = algorithm.paper_surrogate
    algorithm.surrogate = lambda step, batch: (
        seen.append(batch.preference),
        surrogate(step, batch),
    )[1]
    x = beta * difference
    for preference, label in ((0.5, 0.5), (0.7, 1.0), (0.2, 0.0)):
        table = torch.tensor([[[0.5, preference], [1 - preference, 0.5]]], dtype=torch.float64)
        loss = algorithm.loss(step, replace(batch, preference=table))
        expected = label * softplus(-x) + (1 - label) * softplus(x)
        torch.testing.assert_close(loss, expected[None])
        # Both orders of a pair weigh the same, so that labels of 1 in both would give that loss.
        assert seen[-1].tolist() == [[[0.5, label], [1 - label, 0.5]]]


@pytest.mark.parametrize(("rollout", "itself"), [(Enumerate(), False), (Sample(3, 3), True)])
def test_enumerated_responses_are_no_self_play(rollout, itself, monkeypatch):
    """They are averaged over opponents by their law, of which oneself is a part."""
    flags = set()
    loss = algorithms.SPPO.loss

    def spy(algorithm, step, batch):
        flags.add(batch.self_play)
        return loss(algorithm, step, batch)

    monkeypatch.setattr(algorithms.SPPO, "loss", spy)
    game = zoo.small_game(algorithms.SPPO(), realisation=GradientSteps(), rollout=rollout)
    flags.clear()  # of the trial of the parts
    zoo.fit(game, 1)
    assert flags == {itself}


def test_a_product_with_an_unanswered_entry_is_asked_for_again():
    answers = iter([[True, False], [True, True]])

    def expected(prompts, responses, opponent):
        answered = torch.tensor([next(answers)])
        return torch.where(answered, 0.75, torch.nan), answered

    policy = SimpleNamespace(players=("policy", "reference"))
    estimator = PayoffEstimator(
        SimpleNamespace(expected=expected, payoff_bound=0.5), policy, Versions()
    )
    weight = torch.full((1, 2), 0.5)
    tokens = torch.arange(2)[None, :, None]
    responses = Responses(
        tokens, torch.ones_like(tokens, dtype=torch.bool), weight, enumerated=True
    )
    step = ProximalStep(centre={"policy": 1.0}, payoff=((1.0, {"reference": 1.0}),), step_size=1.0)
    asked = [
        estimator(step, Prompts(torch.zeros(1, dtype=torch.long)), responses, [responses])
        for _ in range(3)
    ]
    assert [one.queries for one in asked] == [1, 1, 0]
    assert [one.valid.tolist() for one in asked] == [
        [[True, False]],
        [[True, True]],
        [[True, True]],
    ]


def test_a_payoff_of_two_opponents_needs_an_answer_about_each():
    """2 P anchor - P previous is not had where one of the two was not answered."""
    responses = Responses(torch.arange(2)[None, :, None], torch.ones(1, 2, 1).bool(),
                          torch.full((1, 2), 0.5), enumerated=True)  # fmt: skip
    answered = iter([torch.tensor([[False, True]]), torch.tensor([[True, True]])])
    policy = SimpleNamespace(players=("policy", "reference", "anchor", "previous"))
    oracle = SimpleNamespace(
        expected=lambda *_: (torch.full((1, 2), 0.5), next(answered)), payoff_bound=0.5
    )
    (step,) = algorithms.OptimisticMirrorDescent().steps(0.1, 0)
    versions = Versions(anchor=1, previous=2)
    estimator = PayoffEstimator(oracle, policy, versions)
    prompts = Prompts(torch.arange(1))
    payoffs = estimator(step, prompts, responses, [responses, responses])
    assert payoffs.valid.tolist() == [[False, True]]
    assert payoffs.invalid == 1
