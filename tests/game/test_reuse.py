"""A rollout that carries a proximal step: what is trained on, what is counted, what is refused."""

from dataclasses import replace

import pytest
import torch
import zoo

from nlhf_zoo.algorithms import EGPO, SPPO, MovingMagnet, NashMD, NashMP, OnlineDPO, OnlineIPO
from nlhf_zoo.algorithms.surrogates import ipo_regression, policy_gradient, proximal_regression
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.held_rollout import FrozenLogProbs, Schedule, reweighed
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.oracles import MatrixOracle, SmallLanguage
from nlhf_zoo.policies import CausalLMPolicy, SmallLanguageModel, TabularPolicy
from nlhf_zoo.records import PLAIN, Decoding, Responses
from nlhf_zoo.records.random_streams import random_stream

C, N = 4, 5


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def make_game(algorithm, rollout, **kwargs):
    P, log_mu = zoo.small_games(C, N)
    policy = TabularPolicy(zoo.TensorReference(log_mu))
    options = {"rollout": rollout, "realisation": GradientSteps(), "optimizer": adam} | kwargs
    return OnlineGame(policy, MatrixOracle(P), algorithm, zoo.BETA, **options)


# ---- what is trained on ----


def by_hand(game, rounds, schedule, seed=0):
    """Nash-MP in self-play as in the paper's plan: logits [C, N] of the policy after some rounds.

    Plain torch, but for the responses and the payoffs, which the game's own parts give.
    """
    log_mu, P = game.policy.log_reference, game.oracle.table
    policy = torch.nn.Parameter(game.policy.networks["policy"].logits.detach().clone())
    optimizer = adam([policy])
    anchor, beta, eta, number = policy.detach().clone(), zoo.BETA, 2 * zoo.BETA, 0
    s = eta / (beta * (1 + eta))
    for round in range(rounds):
        start = policy.detach().clone()
        state = {k: {n: v.clone() for n, v in s.items()} for k, s in optimizer.state.items()}
        sampler = anchor
        for half in (0, 1):
            rng = random_stream(seed, 0, number, torch.device("cpu"), "rollout", part=0)
            law = sampler.log_softmax(-1)
            drawn = torch.multinomial(law.exp(), game.rollout.num_responses, True, generator=rng)
            wins = P[torch.arange(C)[:, None, None], drawn[:, :, None], drawn[:, None, :]]
            q = wins.mean(-1)
            centre = (anchor.log_softmax(-1) + eta * log_mu) / (1 + eta)
            for epoch in range(schedule.epochs):
                for minibatch in range(schedule.minibatches):
                    rows = schedule.rows(seed, round, number, epoch, minibatch)
                    log_pi = policy.log_softmax(-1)
                    d = (log_pi - centre).gather(1, drawn)[rows] - s * q[rows]
                    pairs = (d[:, :, None] - d[:, None, :]).square().sum((-2, -1))
                    num = d.shape[1]
                    optimizer.zero_grad()
                    (pairs / (num * (num - 1))).mean().backward()
                    optimizer.step()
            number += 1
            if half == 0:
                sampler = policy.detach().clone()
                with torch.no_grad():
                    policy.copy_(start)
                optimizer.state.clear()
                optimizer.state.update(state)
        anchor = policy.detach().clone()
    return policy.detach()


@pytest.mark.parametrize("minibatch", [None, 2])
def test_a_rollout_is_judged_once_and_trained_on_as_by_hand(minibatch):
    rollout = Sample(6, epochs=3, minibatch=minibatch, held_out=0)
    game = make_game(NashMP(self_play=True), rollout)
    expected = by_hand(game, 2, Schedule(C, 3, minibatch))
    zoo.fit(game, rounds=2)
    torch.testing.assert_close(game.policy.networks["policy"].logits.detach(), expected)


def test_the_policy_in_the_plan_is_the_one_that_drew():
    """Online IPO's centre, opponent and sampler stay where they were at the rollout's start."""
    game = make_game(OnlineIPO(eta=0.7), Sample(6, epochs=5, held_out=0))
    log_mu, P, s, beta = game.policy.log_reference, game.oracle.table, 0.7, zoo.BETA
    policy = torch.nn.Parameter(game.policy.networks["policy"].logits.detach().clone())
    optimizer = adam([policy])
    for number in range(3):
        rng = random_stream(0, 0, number, torch.device("cpu"), "rollout", part=0)
        start = policy.detach().log_softmax(-1)
        drawn = torch.multinomial(start.exp(), 6, True, generator=rng)
        q = P[torch.arange(C)[:, None, None], drawn[:, :, None], drawn[:, None, :]].mean(-1)
        centre = (1 - s * beta) * start + s * beta * log_mu
        for _ in range(5):
            d = (policy.log_softmax(-1) - centre).gather(1, drawn) - s * q
            optimizer.zero_grad()
            ((d[:, :, None] - d[:, None, :]).square().sum((-2, -1)) / 30).mean().backward()
            optimizer.step()
    zoo.fit(game, rounds=3)
    found = game.policy.networks["policy"].logits.detach()
    torch.testing.assert_close(found, policy.detach())


def test_what_is_held_out_is_never_trained_on():
    game = make_game(OnlineIPO(), Sample(6, epochs=2, minibatch=1, held_out=0.5))
    start = game.policy.networks["policy"].logits.detach().clone()
    zoo.fit(game, rounds=1)
    moved = (game.policy.networks["policy"].logits.detach() != start).any(-1)
    schedule = Schedule(C, 2, 1, held_out=0.5)
    kept = [row for rows in schedule.held_out_rows(0, 0) for row in rows]
    assert len(kept) == 2
    assert (~moved).nonzero()[:, 0].tolist() == sorted(kept)
    assert "rollout/held_out_loss" in game.trainer.callback_metrics


def test_each_epoch_passes_over_every_prompt_once_in_an_order_of_its_own():
    schedule = Schedule(60, 3, 5, accumulate=2, held_out=0.2)
    assert (schedule.num_held_out, schedule.minibatches) == (10, 10)
    assert schedule.optimizer_steps == 15
    held = {row for rows in schedule.held_out_rows(0, 7) for row in rows}
    orders = []
    for epoch in range(3):
        order = [row for m in range(10) for row in schedule.rows(0, 7, 7, epoch, m)]
        assert sorted(order) == sorted({*range(60)} - held)
        orders.append(order)
    assert len({tuple(order) for order in orders}) == 3
    assert schedule.held_out_rows(0, 7) != schedule.held_out_rows(0, 8)


# ---- the expected gradient, at weights that were drawn apart from the rollout ----

ALGORITHMS = [
    NashMP(self_play=True),
    NashMP(surrogate=policy_gradient),
    EGPO(self_play=True),
    EGPO(),
    OnlineIPO(),
    OnlineIPO(surrogate=policy_gradient),
    NashMD(eta=0.5, surrogate=policy_gradient),
    SPPO(),
    OnlineDPO(),
]


def frozen_at_the_start(game, step, prompts, responses):
    """Log-probabilities of the players; then the policy moves elsewhere."""
    frozen = FrozenLogProbs.of(game.policy, step, prompts, responses)
    with torch.no_grad():
        game.policy.networks["policy"].logits += 0.6 * zoo.normal_logits(3, seed=77)
    return frozen


def gradient(game, step, frozen, responses, payoffs):
    game.reuse.log_probs = frozen
    prompts = zoo.all_prompts(game)
    loss = game.improve(step, prompts, responses, payoffs) * len(prompts)
    return torch.autograd.grad(loss, game.policy.networks["policy"].logits)[0]


@pytest.mark.parametrize(
    "algorithm", ALGORITHMS, ids=lambda a: f"{type(a).__name__}-{a.chosen_surrogate(True).__name__}"
)
def test_the_expected_gradient_of_a_held_rollout_is_the_enumerated_one(algorithm):
    """To rounding, over all 3^(K + L) draws of an earlier policy; the ratio is not clipped."""
    scored, others = 4, 1
    P = zoo.games.uniform_random(1, 3, seed=4)
    log_mu = zoo.normal_logits(3, seed=8).log_softmax(-1)[None]
    for number, step in enumerate(algorithm.steps(zoo.BETA, 0)):
        outcomes = torch.cartesian_prod(
            *[torch.arange(3)] * (scored + (0 if step.self_play else others))
        )
        copies = len(outcomes)

        def built(rollout, copies, given=algorithm):
            policy = TabularPolicy(zoo.TensorReference(log_mu.expand(copies, -1)))
            oracle = MatrixOracle(P.expand(copies, -1, -1))
            game = OnlineGame(
                policy, oracle, given, zoo.BETA, rollout=rollout, realisation=GradientSteps()
            )
            zoo.scatter_players(game)
            return game

        game = built(Sample(scored, others, epochs=2, clip=None), copies)
        prompts, step = zoo.all_prompts(game), game.plan[number]
        probability, drawn = torch.ones(copies, dtype=torch.float64), []
        who = [step.sampler] if step.self_play else [step.sampler, step.payoff[0][1]]
        for mixture, actions in zip(
            who, outcomes.split([scored, others][: len(who)], 1), strict=True
        ):
            law = game.policy.distribution(mixture, prompts).detach()
            probability = probability * law.gather(1, actions).sum(-1).exp()
            weight = torch.full(actions.shape, 1 / actions.shape[1], dtype=torch.float64)
            tokens = actions[:, :, None]
            drawn.append(Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight))
        payoffs = game.estimator(step, prompts, drawn[0], drawn[1:] or drawn)
        frozen = frozen_at_the_start(game, step, prompts, drawn[0])
        found = probability @ gradient(game, step, frozen, drawn[0], payoffs)

        # Enumerated: the same loss with all responses, weighted by the law that drew.
        whole = built(Sample(scored, others, epochs=2, clip=None), 1)
        one = zoo.all_prompts(whole)
        listed = Enumerate().responses(whole.policy, step.sampler, one)
        opponents = [Enumerate().responses(whole.policy, step.payoff[0][1], one)]
        exact = whole.estimator(step, one, listed, opponents)
        frozen = frozen_at_the_start(whole, step, one, listed)
        expected = gradient(whole, step, frozen, listed, exact)[0]
        assert expected.norm() > 1e-3
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_clipped_ratio_pushes_no_further():
    """PPO's bound: beyond it no gradient where the advantage pushes on, all of it back."""
    game = make_game(OnlineIPO(surrogate=policy_gradient), Sample(2, epochs=2, clip=0.2))
    tokens = torch.tensor([[[0], [1]]] * C)
    half = torch.full((C, 2), 0.5, dtype=torch.float64)
    responses = Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), half)
    valid = torch.ones(C, 2, dtype=torch.bool)
    prompts, step = zoo.all_prompts(game), game.plan[0]
    now = game.policy.log_prob({"policy": 1.0}, prompts, responses).detach()
    for sign in (1.0, -1.0):
        q = torch.tensor([[0.5 + 50 * sign, 0.5 - 50 * sign]], dtype=torch.float64).expand(C, 2)
        payoffs = Payoffs(q, valid, 1, 1, 0)
        sampler = now - torch.tensor([1.3, 1.0], dtype=torch.float64).log()  # ratio 1.3 and 1
        frozen = FrozenLogProbs(sampler, {"policy": sampler, "reference": now})
        found = gradient(game, step, frozen, responses, payoffs)
        unclipped = make_game(OnlineIPO(surrogate=policy_gradient), Sample(2, epochs=2, clip=None))
        whole = gradient(unclipped, step, frozen, responses, payoffs)
        same = torch.allclose(found, whole)
        assert same == (sign < 0)


def test_a_reweighted_payoff_is_that_of_the_other_opponent():
    """With all responses drawn in proportion, self-normalised weights give P o exactly."""
    P = zoo.games.uniform_random(1, 4, seed=5)
    log_o = zoo.normal_logits(4, seed=6).log_softmax(-1)[None]
    uniform = torch.full((1, 4), 0.25, dtype=torch.float64).log()
    everyone = torch.ones(1, 4, 4, dtype=torch.bool)
    payoffs = Payoffs(P.mean(-1), everyone[:, 0], 6, 6, 0, P, everyone)
    found, size = reweighed(payoffs, uniform, log_o)
    torch.testing.assert_close(found.payoff, (P @ log_o.exp()[..., None])[..., 0])
    torch.testing.assert_close(size, 1 / log_o.exp().square().sum(-1))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_reweighted_to_its_own_sampler_a_payoff_is_what_it_was(share):
    """Also where answers are missing: the step's size does not depend on how many there are."""
    game = make_game(OnlineIPO(), Sample(8, epochs=1))
    prompts = zoo.all_prompts(game)
    responses = game.policy.sample(
        {"policy": 1.0}, prompts, 8, PLAIN, torch.Generator().manual_seed(0)
    )
    forward, rng = game.oracle.forward, torch.Generator().manual_seed(1)

    def partly(*given):
        answer = forward(*given)
        missing = torch.rand(answer.valid.shape, generator=rng).triu(1)
        missing = (missing + missing.mT) > 1 - share
        return replace(answer, valid=answer.valid & ~missing)

    game.oracle.forward = partly
    payoffs = game.estimator(game.plan[0], prompts, responses, [responses])
    assert bool((~payoffs.pair_valid).any()) == (share > 0)
    same = torch.zeros_like(payoffs.payoff)
    found, size = reweighed(payoffs, same, same)
    judged = payoffs.valid
    torch.testing.assert_close(found.payoff[judged], payoffs.payoff[judged], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(size, judged.sum(-1).to(size))
    nothing = replace(payoffs, valid=judged & False, pair_valid=payoffs.pair_valid & False)
    found, size = reweighed(nothing, same, same)
    assert (found.payoff == 0.5).all()
    assert (size == 0).all()


# ---- what is counted ----


@pytest.mark.parametrize(
    ("algorithm", "queries"),
    [
        (NashMP(), 2 * 6 * 3),
        (NashMP(self_play=True), 2 * 15),
        (NashMP(self_play=True, reweighted=True), 15),
        (EGPO(self_play=True), 2 * 15),
        (OnlineIPO(), 15),
        (MovingMagnet(inner=OnlineIPO(), every=2), 15),
    ],
    ids=lambda a: getattr(a, "paper", a),
)
def test_queries_move_when_a_rollout_is_judged_and_at_no_other_step(algorithm, queries):
    game = make_game(algorithm, Sample(6, 3, epochs=4, minibatch=2))
    asked = 0
    forward = game.oracle.forward

    def counting(prompts, first, second):
        nonlocal asked
        same = first is second
        asked += len(prompts) * (
            first.num * (first.num - 1) // 2 if same else first.num * second.num
        )
        return forward(prompts, first, second)

    game.oracle.forward = counting
    assert game.queries_per_round() == queries
    zoo.fit(game, rounds=3)
    assert game.progress.queries_per_prompt == 3 * queries
    assert game.progress.queries == asked == 3 * queries * C
    rollouts = sum(not step.reweighted for step in game.plan)
    assert game.progress.rollouts == 3 * rollouts
    # 8 minibatches a proximal step, each a training step.
    assert game.progress.batches == 3 * 8 * len(game.plan)
    assert (game.progress.epoch, game.progress.minibatch) == (0, 0)


def test_accumulated_batches_are_one_rollout():
    """Of data.batch_size x accumulate_grad_batches prompts; as many optimiser steps as epochs."""
    game = make_game(OnlineIPO(), Sample(6, epochs=3))
    zoo.fit(game, 2, TablePrompts(batch_size=2), accumulate_grad_batches=2)
    assert game.progress.rollouts == 2
    assert game.progress.batches == 2 * 3 * 2
    assert game.trainer.global_step == 2 * 3
    assert game.progress.queries == 2 * 15 * C


def test_what_is_logged_of_a_rollout():
    rollout = Sample(6, epochs=2, minibatch=1, held_out=0.3)
    game = zoo.fit(make_game(NashMP(self_play=True, reweighted=True), rollout), rounds=1)
    figures = game.trainer.callback_metrics
    assert 1 <= figures["rollout/effective_sample_size"] <= 6
    assert figures["rollout/held_out_loss"] > 0
    game = zoo.fit(make_game(OnlineIPO(surrogate=policy_gradient), rollout), rounds=1)
    assert 0 <= game.trainer.callback_metrics["rollout/clipped"] <= 1


# ---- what is refused ----


@pytest.mark.parametrize(
    ("algorithm", "rollout", "words"),
    [
        (OnlineIPO(surrogate=ipo_regression), Sample(4, epochs=2), "needs a fresh rollout"),
        (NashMP(inner_steps=3), Sample(4, epochs=2), "leave model.algorithm.inner_steps at 1"),
        (NashMP(self_play=True, reweighted=True), Sample(4), "set model.rollout.epochs"),
        (NashMP(self_play=True, surrogate=policy_gradient), Sample(4), "of the policy itself"),
        (
            NashMP(self_play=True, reweighted=True, opponent=Decoding(top_p=0.4)),
            Sample(4, epochs=2),
            "draw whole responses",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(algorithm, rollout, words):
    with pytest.raises(UserError, match=words):
        make_game(algorithm, rollout)


def test_minibatches_that_do_not_divide_a_rollout_are_refused():
    game = make_game(OnlineIPO(), Sample(4, epochs=2, minibatch=3))
    with pytest.raises(UserError, match=r"rollout of 4 prompts .* optimiser steps of 3"):
        zoo.fit(game, rounds=1)


@pytest.mark.parametrize(
    "given",
    [{"epochs": 0}, {"minibatch": 2}, {"held_out": 1.0}, {"clip": 0.0}, {"clip": float("nan")}],
    ids=str,
)
def test_numbers_of_a_rollout_are_checked(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        Sample(4, **given)


def test_the_default_loss_is_one_that_may_be_reused():
    for algorithm in (NashMP(), EGPO(), OnlineIPO(), NashMD()):
        assert algorithm.chosen_surrogate(reused=True) is proximal_regression
        assert algorithm.chosen_surrogate(reused=False) is algorithm.paper_surrogate
    assert SPPO().chosen_surrogate(reused=True) is SPPO().paper_surrogate


def test_importance_ratios_want_whole_log_probabilities():
    policy = CausalLMPolicy(SmallLanguageModel(), max_new_tokens=3, length_normalised=True)
    with pytest.raises(UserError, match=r"set model\.policy\.length_normalised to false"):
        OnlineGame(
            policy, SmallLanguage(), OnlineIPO(surrogate=policy_gradient), zoo.BETA,
            rollout=Sample(4, epochs=2), realisation=GradientSteps(),
        )  # fmt: skip
