"""Who draws the responses that are scored: what is drawn, asked, counted, solved and refused."""

import pytest
import torch
import zoo

from game.test_pairs import Counting
from game.test_reuse import gradient, make_game
from nlhf_zoo.algorithms import EGPO, SPPO, NashMD, NashMP, OnlineDPO, OnlineIPO, PairwiseGRPO
from nlhf_zoo.algorithms.surrogates import policy_gradient
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.held_rollout import FrozenLogProbs
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.oracles import MatrixOracle, SmallLanguage
from nlhf_zoo.policies import CausalLMPolicy, LoRA, SmallLanguageModel, TabularPolicy
from nlhf_zoo.records import GREEDY, Decoding, Responses

GAMES = 4
HALF = {"policy": 0.5, "reference": 0.5}


# ---- what is solved ----


def copies_of_a_game(algorithm, rollout, copies):
    """Copies of one game of three actions, whose players are all different policies."""
    P = zoo.games.uniform_random(1, 3, seed=4)
    log_mu = zoo.normal_logits(3, seed=8).log_softmax(-1)[None]
    game = OnlineGame(
        TabularPolicy(zoo.TensorReference(log_mu.expand(copies, -1))),
        MatrixOracle(P.expand(copies, -1, -1)),
        algorithm,
        zoo.BETA,
        rollout=rollout,
        realisation=GradientSteps(),
    )
    zoo.scatter_players(game)
    return game


def all_draws(game, step, outcomes):
    """Responses and opponents of all outcomes, and their probabilities; a greedy one is added."""
    prompts, rollout, probability, drawn = zoo.all_prompts(game), game.rollout, 1.0, []
    sizes = [rollout.num_responses - step.greedy, rollout.num_opponents]
    who = [step.sampler, step.payoff[0][1]]
    for actions, player in zip(outcomes.split(sizes, 1), who, strict=True):
        law = game.policy.distribution(player, prompts).detach()
        probability = probability * law.gather(1, actions).sum(-1).exp()
        if step.greedy and not drawn:
            actions = torch.cat([actions, law.argmax(-1, keepdim=True)], 1)
        tokens, version = actions[:, :, None], game.policy.stamp(player)
        weight = torch.full(actions.shape, 1 / actions.shape[1], dtype=torch.float64)
        drawn.append(Responses(tokens, torch.ones_like(tokens) > 0, weight, version=version))
    return *drawn, probability


SAMPLERS = [("reference", False), (HALF, False), (None, True), ("reference", True)]
REGRESSIONS = [OnlineIPO(), NashMP(self_play=True), EGPO(self_play=True)]


@pytest.mark.parametrize(("sampler", "greedy"), SAMPLERS)
@pytest.mark.parametrize("algorithm", REGRESSIONS, ids=lambda a: type(a).__name__)
def test_the_regression_is_least_at_the_proximal_step_whoever_draws(algorithm, sampler, greedy):
    """Its expected gradient there is 0 to rounding, over all 3^4 draws; elsewhere it is not."""
    rollout = Sample(3, 1, epochs=2, sampler=sampler, greedy=greedy)
    outcomes = torch.cartesian_prod(*[torch.arange(3)] * (3 - greedy + 1))
    game = copies_of_a_game(algorithm, rollout, len(outcomes))
    prompts, every = zoo.all_prompts(game), Enumerate()
    for step in game.plan:
        responses, opponents, probability = all_draws(game, step, outcomes)
        torch.testing.assert_close(probability.sum().item(), 1.0)
        payoffs = game.judge(step, prompts, responses, [opponents])
        frozen = FrozenLogProbs.of(game.policy, step, prompts, responses)
        ((_, opponent),) = step.payoff
        opponent = every.responses(game.policy, opponent, prompts).weight
        q = (game.oracle.table @ opponent[:, :, None])[:, :, 0]
        solution = game.policy.distribution(step.centre, prompts).detach() + step.step_size * q
        logits = game.policy.networks["policy"].logits
        there = logits.detach().clone()
        found = []
        for place in (solution, there):
            with torch.no_grad():
                logits.copy_(place)
            found.append(probability @ gradient(game, step, frozen, responses, payoffs))
        assert found[0].abs().max() < 1e-12
        assert found[1].abs().max() > 1e-3


# ---- what is drawn ----


def test_a_greedy_response_is_the_likeliest_and_the_others_are_drawn():
    game = make_game(OnlineIPO(), Sample(6, 3, sampler="reference", greedy=True))
    (step,) = game.plan
    rng = torch.Generator().manual_seed(0)
    scored, (opponents,) = game.rollout.play(step, game.policy, zoo.all_prompts(game), rng)
    law = game.policy.log_reference
    assert scored.actions.shape == (GAMES, 6)
    assert torch.equal(scored.actions[:, -1], law.argmax(-1))
    assert opponents.actions.shape == (GAMES, 3)
    assert torch.equal(scored.weight, torch.full((GAMES, 6), 1 / 6, dtype=torch.float64))
    again = torch.Generator().manual_seed(0)
    others = torch.multinomial(law.exp(), 5, True, generator=again)
    assert torch.equal(scored.actions[:, :-1], others)


def test_a_sampler_that_is_the_algorithms_own_changes_nothing():
    plain, named = (make_game(OnlineIPO(), Sample(6, sampler=who)) for who in (None, "policy"))
    assert plain.plan == named.plan
    assert plain.queries_per_round() == named.queries_per_round() == 15
    zoo.fit(plain, rounds=2)
    zoo.fit(named, rounds=2)
    assert torch.equal(plain.log_policy(), named.log_policy())


def language_game(algorithm, **rollout):
    policy = CausalLMPolicy(
        SmallLanguageModel(hidden_size=16, layers=1, num_letters=4), LoRA(2), max_new_tokens=2
    )
    oracle, gradient = SmallLanguage(num_letters=4, length=2), GradientSteps()
    rollout = Sample(4, 2, **rollout)
    return OnlineGame(policy, oracle, algorithm, 0.1, rollout=rollout, realisation=gradient)


@pytest.mark.filterwarnings("ignore:Found .* module")
@pytest.mark.parametrize("epochs", [None, 2])
def test_a_language_model_draws_from_a_mixture_and_greedily(epochs):
    game = language_game(OnlineIPO(), epochs=epochs, sampler=HALF, greedy=True)
    rng = torch.Generator().manual_seed(5)
    prompts = game.policy.encode(game.oracle.prompts)
    likeliest = game.policy.sample(game.step.sampler, prompts, 1, GREEDY, rng)
    drawn, judge = [], game.judge
    game.judge = lambda step, prompts, responses, *rest: (
        drawn.append(responses),
        judge(step, prompts, responses, *rest),
    )[1]
    zoo.fit(game, rounds=2)
    assert game.progress.queries_per_prompt == 2 * 4 * 2
    for responses in drawn:
        assert responses.num == 4
        assert all(len(row) == 4 for row in responses.text)
    assert [row[-1] for row in drawn[0].text] == [row[0] for row in likeliest.text]


@pytest.mark.filterwarnings("ignore:Found .* module")
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_tempered_law_is_no_gap_between_generator_and_trainer(temperature):
    """A generator says log-probabilities untempered; those of a held rollout's sampler are not."""
    game = language_game(OnlineDPO(scored=Decoding(temperature)), epochs=1)
    zoo.fit(game, rounds=1)
    gap = game.trainer.callback_metrics.get("rollout/log_prob_gap")
    assert gap is None if temperature != 1 else gap < 1e-4


# ---- what is asked, and counted ----

COUNTS = [
    (OnlineIPO(), {"sampler": "reference"}, 6 * 3),
    (OnlineIPO(), {"greedy": True}, 6 * 3),
    (OnlineIPO(), {"sampler": "reference", "pairs": "circle"}, 6 * 2),
    (OnlineDPO(), {"sampler": "reference", "greedy": True}, 15),
    (OnlineDPO(), {"sampler": HALF, "pairs": "circle"}, 6),
    (SPPO(), {"sampler": "policy"}, 6 * 3),  # its own is the anchor
    (SPPO(), {"sampler": "anchor"}, 15),
    (NashMP(self_play=True), {"sampler": "reference"}, 2 * 6 * 3),
    (EGPO(), {"sampler": "reference"}, 2 * 6 * 3),
]


@pytest.mark.parametrize("epochs", [None, 2])
@pytest.mark.parametrize(("algorithm", "options", "queries"), COUNTS)
def test_what_is_counted_is_what_is_asked_and_what_is_declared(algorithm, options, queries, epochs):
    game = make_game(algorithm, Sample(6, 3, epochs, **options))
    game.oracle = game.estimator.oracle = Counting(game.oracle)
    assert game.queries_per_round() == queries
    zoo.fit(game, rounds=2)
    assert game.progress.queries_per_prompt == 2 * queries
    assert game.oracle.pairs == game.progress.queries == 2 * queries * GAMES


# ---- what is refused ----

OWN = "the policy gradient needs responses of the policy itself"
REFUSED = [
    (PairwiseGRPO(normalise=True), {"greedy": True}, "within the group of self-play alone"),
    (NashMD(), {"sampler": "reference"}, OWN),
    (NashMD(), {"greedy": True}, OWN),
    (OnlineIPO(surrogate=policy_gradient), {"greedy": True, "epochs": 2}, OWN),
    (OnlineIPO(), {"sampler": "anchor"}, "names the player 'anchor', but OnlineIPO has policy, re"),
    (
        NashMP(self_play=True, reweighted=True),
        {"sampler": "reference", "epochs": 2},
        "NashMP.reweighted weighs the answers among the opponent's own responses",
    ),
]


@pytest.mark.parametrize(("algorithm", "options", "words"), REFUSED)
def test_a_sampler_that_does_not_fit_is_refused(algorithm, options, words):
    with pytest.raises(UserError, match=words):
        make_game(algorithm, Sample(6, **options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_responses": 1, "greedy": True}, "a greedy response alone"),
        ({"sampler": {"policy": 0.5}}, "sum to 1, but it is {'policy': 0.5}"),
        ({"sampler": {"policy": 1.5, "reference": -0.5}}, "are not negative"),
        ({"sampler": {}}, "sampler is a player or a mixture"),
        ({"epochs": 2, "ahead": True, "greedy": True}, "ahead has the policy one rollout ago draw"),
    ],
)
def test_options_that_are_no_sampler_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Sample(**options)
