"""Sampled gradients are unbiased for enumerated ones, in size and in direction.

Draws are copies of one game in one batch: the logits of each copy get the gradient of their own
draw. An expectation is exact where all draws are listed with their probabilities, and a mean over
many elsewhere.

Statistics: each coordinate of a mean must lie within four standard errors, which a correct
estimate misses with probability 6e-5; about 1,500 are compared, and the seeds are fixed.
"""

from dataclasses import replace

import pytest
import torch
from zoo import (
    BETA,
    SURROGATES,
    UNBIASED,
    Scored,
    TensorReference,
    all_prompts,
    fits,
    judge,
    normal_logits,
    scatter_players,
)

from nlhf_zoo import algorithms
from nlhf_zoo.algorithms import surrogates
from nlhf_zoo.data.tables import games
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.oracles import BernoulliLabels, PreferenceOracle
from nlhf_zoo.policies import TabularPolicy
from nlhf_zoo.records import PLAIN, Comparison, Responses
from nlhf_zoo.records.random_streams import random_stream

DRAWS = 10_000
COMPARED = [row for row in UNBIASED if not row.by_score]  # of which pairs are asked about
# Every row of the zoo with every surrogate that fits all of its steps; None is the algorithm's own.
CASES = [
    pytest.param(row, surrogate, id=f"{row}-{surrogate.__name__ if surrogate else 'own'}")
    for row in UNBIASED
    for surrogate in [None, *(SURROGATES if row.takes_surrogate else [])]
    if surrogate is None or all(fits(surrogate, step) for step in row.make().steps(BETA, 0))
]


def make_game(algorithm, copies, num_actions, rollout, wrap=lambda oracle: oracle):
    """Copies of one game, whose players are all different policies."""
    P = games.uniform_random(1, num_actions, seed=4).expand(copies, -1, -1)
    mu, start = (
        normal_logits(num_actions, seed=i).expand(copies, -1).log_softmax(-1) for i in (8, 9)
    )
    policy = TabularPolicy(TensorReference(mu), TensorReference(start))
    game = OnlineGame(
        policy, wrap(Scored(P)), algorithm, BETA, rollout=rollout, realisation=GradientSteps()
    )
    scatter_players(game)
    return game


def gradients(game, step, responses, opponents, change=lambda payoffs: payoffs):
    """The gradient of each copy's own loss [copies, N], of those that could be judged."""
    prompts = all_prompts(game)
    unjudged = game.progress.unjudged
    payoffs = change(judge(game, step, prompts, responses, opponents))
    loss = game.improve(step, prompts, responses, payoffs)
    logits = game.policy.networks["policy"].logits
    judged = payoffs.valid.any(-1)
    assert len(prompts) - judged.sum() == game.progress.unjudged - unjudged
    return judged.sum() * torch.autograd.grad(loss, logits)[0][judged]


def enumerated_gradient(algorithm, number, num_actions, change=lambda payoffs: payoffs):
    """Of one step of the plan [N]."""
    game = make_game(algorithm, 1, num_actions, Enumerate())
    step = game.plan[number]
    played = game.rollout.play(step, game.policy, all_prompts(game), None)
    return gradients(game, step, *played, change)[0]


def sampled_gradients(
    algorithm, number, num_actions, rollout, change=lambda payoffs: payoffs, **other
):
    """Of many draws of one step of the plan [draws, N]."""
    game = make_game(algorithm, other.pop("draws", DRAWS), num_actions, rollout, **other)
    step = game.plan[number]
    rng = random_stream(0, 0, 0, torch.device("cpu"))
    played = rollout.play(step, game.policy, all_prompts(game), rng)
    return gradients(game, step, *played, change)


def within_four_standard_errors(draws, expected):
    error = draws.std(0) / len(draws) ** 0.5
    return bool(((draws.mean(0) - expected).abs() <= 4 * error + 1e-12).all())


EIGHT = pytest.param(8, marks=pytest.mark.slow)  # which shows what 4 do, on many more draws


# ---- exactly: all draws with their probabilities ----


def all_draws(step, num_actions, num_responses, num_opponents, algorithm):
    """A game with a copy for every outcome of sampling, the outcomes, and their probabilities."""
    sizes = [num_responses] + ([] if step.self_play else [num_opponents] * len(step.payoff))
    sizes += [] if step.explored is None else [1]
    outcomes = torch.cartesian_prod(*[torch.arange(num_actions)] * sum(sizes))
    game = make_game(algorithm, len(outcomes), num_actions, Sample(num_responses, num_opponents))
    who = [(step.sampler, step.scored)]
    who += [] if step.self_play else [(o, step.opponent) for _, o in step.payoff]
    who += [] if step.explored is None else [(step.explored, PLAIN)]
    probability, responses = torch.ones(len(outcomes), dtype=torch.float64), []
    for actions, (mixture, decoding) in zip(outcomes.split(sizes, 1), who, strict=True):
        log_prob = game.policy.distribution(mixture, all_prompts(game), decoding).gather(1, actions)
        probability = probability * log_prob.sum(-1).exp().detach()
        tokens = actions[:, :, None]
        weight = torch.full(actions.shape, 1 / actions.shape[1], dtype=torch.float64)
        mask, version = torch.ones_like(tokens, dtype=torch.bool), game.policy.stamp(mixture)
        responses.append(Responses(tokens, mask, weight, version=version))
    if step.explored is not None:
        explored = responses.pop()
        responses[0] = replace(responses[0], explored=explored)
    return game, responses[0], responses[1:] or responses, probability


@pytest.mark.parametrize(("row", "surrogate"), CASES)
@pytest.mark.parametrize("num_responses", [2, 4, EIGHT])
def test_the_expected_sampled_gradient_is_the_enumerated_one(row, surrogate, num_responses):
    """To rounding, over all N^(K + L) draws, N = 3, and 2 where these would be too many."""
    algorithm = row.make(**({} if surrogate is None else {"surrogate": surrogate}))
    for number, step in enumerate(algorithm.steps(BETA, 0)):
        num = 3 if num_responses + len(step.payoff) < 10 else 2
        game, responses, opponents, probability = all_draws(step, num, num_responses, 1, algorithm)
        torch.testing.assert_close(probability.sum().item(), 1.0)
        found = probability @ gradients(game, game.plan[number], responses, opponents)
        expected = enumerated_gradient(algorithm, number, num)
        assert expected.norm() > 1e-3
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_several_opponents_a_response_are_averaged():
    algorithm = algorithms.NashMP()
    for number, step in enumerate(algorithm.steps(BETA, 0)):
        game, responses, opponents, probability = all_draws(step, 3, 2, 3, algorithm)
        found = probability @ gradients(game, game.plan[number], responses, opponents)
        expected = enumerated_gradient(algorithm, number, 3)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# ---- in the mean: what is really drawn ----


@pytest.mark.parametrize(("row", "surrogate"), CASES)
@pytest.mark.parametrize("num_responses", [pytest.param(2, marks=pytest.mark.slow), 4, EIGHT])
def test_the_mean_sampled_gradient_is_the_enumerated_one(row, surrogate, num_responses):
    algorithm = row.make(**({} if surrogate is None else {"surrogate": surrogate}))
    for number in range(len(algorithm.steps(BETA, 0))):
        draws = sampled_gradients(algorithm, number, 4, Sample(num_responses, 2))
        assert within_four_standard_errors(draws, enumerated_gradient(algorithm, number, 4))


# With every surrogate in a circle; the algorithm's own in another design, too.
DESIGNED = [
    *[
        pytest.param(*case.values, "circle", id=f"{case.id}-circle")
        for case in CASES
        if case.values[0] in COMPARED
    ],
    *[pytest.param(row, None, "regular(1)", id=f"{row}-regular") for row in COMPARED],
]


@pytest.mark.parametrize(("row", "surrogate", "pairs"), DESIGNED)
def test_a_comparison_design_leaves_the_mean_where_it_was(row, surrogate, pairs):
    """In self-play and with opponents of their own, of which each response meets a part."""
    algorithm = row.make(**({} if surrogate is None else {"surrogate": surrogate}))
    for number in range(len(algorithm.steps(BETA, 0))):
        rollout = Sample(4, 3, pairs=pairs)
        draws = sampled_gradients(algorithm, number, 4, rollout, draws=3000)
        assert within_four_standard_errors(draws, enumerated_gradient(algorithm, number, 4))


def labelled(oracle):
    return BernoulliLabels(oracle, seed=1)


@pytest.mark.parametrize("row", [row for row in COMPARED if not row.kwargs.get("hard")], ids=str)
def test_labels_for_probabilities_leave_the_mean_where_it_was(row):
    algorithm = row.make()
    for number in range(len(algorithm.steps(BETA, 0))):
        draws = sampled_gradients(algorithm, number, 4, Sample(4, 2), wrap=labelled)
        assert within_four_standard_errors(draws, enumerated_gradient(algorithm, number, 4))


def test_hard_online_dpo_on_labels_is_soft_online_dpo_in_the_mean():
    soft, hard = algorithms.OnlineDPO(), algorithms.OnlineDPO(hard=True)
    draws = sampled_gradients(hard, 0, 4, Sample(4), wrap=labelled)
    assert within_four_standard_errors(draws, enumerated_gradient(soft, 0, 4))
    assert not within_four_standard_errors(draws, enumerated_gradient(hard, 0, 4))


# ---- the self-play trap: the ratio of the payoff's part to the regularisation's ----


def indifferent(payoffs):
    """The payoffs of an oracle that always says 1/2: it leaves the KL's part of a gradient."""
    half = None if payoffs.preference is None else torch.full_like(payoffs.preference, 0.5)
    return replace(payoffs, payoff=torch.full_like(payoffs.payoff, 0.5), preference=half)


def ratio_of_parts(algorithm, rollout, change=lambda payoffs: payoffs, **other):
    """Size of the payoff's part over that of the KL's, and its standard error.

    Both parts are in units of the enumerated gradient's: 1 is the stated game, and r the game at
    temperature beta / r.
    """
    kl_part = enumerated_gradient(algorithm, 0, 4, indifferent)
    payoff_part = enumerated_gradient(algorithm, 0, 4) - kl_part
    found = sampled_gradients(algorithm, 0, 4, rollout, change, **other)
    parts = torch.stack([payoff_part, kl_part])
    shares = found @ torch.linalg.pinv(parts)  # [draws, 2], each of mean 1
    payoff, kl = shares.mean(0)
    ratio = (payoff / kl).item()
    error = (shares[:, 0] - ratio * shares[:, 1]).std() / kl / len(shares) ** 0.5
    return ratio, error.item()


def leave_oneself_out(payoffs):
    """The planted mistake: q over the K - 1 others, and a leave-one-out baseline as well."""
    num = payoffs.payoff.shape[1]
    return replace(payoffs, payoff=0.5 + (payoffs.payoff - 0.5) * num / (num - 1))


SELF_PLAY = [
    *[algorithms.OnlineIPO(surrogate=s) for s in SURROGATES if s is not surrogates.logistic],
    algorithms.SPPO(),
]
in_self_play = pytest.mark.parametrize(
    "algorithm",
    SELF_PLAY,
    ids=[f"{type(a).__name__}-{a.chosen_surrogate(False).__name__}" for a in SELF_PLAY],
)


@in_self_play
@pytest.mark.parametrize("num_responses", [2, 4, EIGHT])
def test_self_play_solves_the_game_at_its_own_temperature(algorithm, num_responses):
    draws = 20_000 * num_responses
    ratio, error = ratio_of_parts(algorithm, Sample(num_responses), draws=draws)
    assert abs(ratio - 1) < 4 * error
    # The mistake would be seen: it plays the game at beta (K - 1) / K.
    planted, error = ratio_of_parts(
        algorithm, Sample(num_responses), leave_oneself_out, draws=draws
    )
    mistaken = num_responses / (num_responses - 1)
    assert abs(planted - mistaken) < 4 * error * mistaken
    assert abs(planted - 1) > 5 * error


class Unanswered(PreferenceOracle):
    """Another oracle that leaves a share of the pairs unanswered, whichever order they come in.

    Args:
        oracle: whose answers.
        share: of pairs that are invalid; 1 answers nothing.
        lie: what the preference of an invalid answer says; nobody may read it.
    """

    def __init__(self, oracle: PreferenceOracle, share: float, lie: float = float("nan")) -> None:
        super().__init__()
        self.oracle, self.share, self.lie = oracle, share, lie
        self.generator = torch.Generator().manual_seed(0)

    @property
    def support(self):
        return self.oracle.support

    def forward(self, prompts, first, second):
        answer = self.oracle(prompts, first, second)
        draw = torch.rand(answer.preference.shape, generator=self.generator)
        if first is second:
            draw = draw.triu() + draw.triu(1).mT
        valid = draw >= self.share
        return Comparison(answer.preference.masked_fill(~valid, self.lie), valid)


def partly_answered(oracle):
    return Unanswered(oracle, 0.4)


@in_self_play
def test_missing_answers_do_not_change_the_temperature(algorithm):
    setting = {"draws": 200_000, "wrap": partly_answered}
    ratio, error = ratio_of_parts(algorithm, Sample(4), **setting)
    assert abs(ratio - 1) < 4 * error
    # The mistake would be seen: it plays the game at a larger beta.
    planted, error = ratio_of_parts(algorithm, Sample(4), average_own_answers, **setting)
    assert planted < 1 - 4 * error


def test_neither_do_pairs_that_a_design_leaves_out():
    algorithm, rollout = algorithms.OnlineIPO(), Sample(4, pairs="circle")
    setting = {"draws": 80_000, "wrap": partly_answered}
    ratio, error = ratio_of_parts(algorithm, rollout, **setting)
    assert abs(ratio - 1) < 4 * error
    planted, error = ratio_of_parts(algorithm, rollout, average_own_answers, **setting)
    assert planted < 1 - 4 * error


def average_own_answers(payoffs):
    """The planted mistake: the average over one's own valid opponents, oneself among them."""
    payoff = (payoffs.pair_valid * payoffs.preference).sum(-1) / payoffs.pair_valid.sum(-1)
    return replace(payoffs, payoff=payoff)


@pytest.mark.parametrize(
    "algorithm", [algorithms.NashMP(), algorithms.EGPO()], ids=lambda a: type(a).__name__
)
def test_missing_answers_of_opponents_do_not_change_the_temperature(algorithm):
    ratio, error = ratio_of_parts(algorithm, Sample(4, 2), draws=100_000, wrap=partly_answered)
    assert error < 0.035
    assert abs(ratio - 1) < 4 * error


def test_missing_answers_leave_the_mean_of_online_dpo_where_it_was():
    draws = sampled_gradients(algorithms.OnlineDPO(), 0, 4, Sample(4), wrap=partly_answered)
    assert len(draws) < DRAWS
    assert within_four_standard_errors(draws, enumerated_gradient(algorithms.OnlineDPO(), 0, 4))
