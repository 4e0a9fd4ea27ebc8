"""The next rollout is drawn while this one is trained on: one rollout behind, and weighted so."""

import copy
import signal
import threading
from functools import partial

import lightning as L
import pytest
import rows
import torch
import zoo

from game.test_held_rollouts import counting_questions
from game.test_reuse import C, N, adam, make_game
from nlhf_zoo.algorithms import EGPO, SPPO, XPO, NashMD, NashMP, OnlineDPO, OnlineIPO
from nlhf_zoo.algorithms.surrogates import policy_gradient
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles import MatrixOracle, SmallLanguage
from nlhf_zoo.policies import CausalLMPolicy, LoRA, SmallLanguageModel, TabularPolicy
from nlhf_zoo.policies.language_model.generation import Generator, TransformersGenerator
from nlhf_zoo.records import Decoding
from nlhf_zoo.records.random_streams import random_stream
from nlhf_zoo.signals import StoppedBySignal
from nlhf_zoo.solvers import exploitability


def by_hand(game, rounds, epochs, opponent="policy"):
    """Mirror descent on rollouts of the policy one rollout ago, in plain torch: logits [C, N].

    A rollout is passed over ``epochs`` times, or as often as its place in them says.
    """
    log_mu, P, s, beta = game.policy.log_reference, game.oracle.table, 0.7, zoo.BETA
    policy = torch.nn.Parameter(game.policy.networks["policy"].logits.detach().clone())
    optimizer = adam([policy])
    behind = policy.detach().log_softmax(-1)
    rows = torch.arange(C)[:, None]
    for number in range(rounds):
        rng = random_stream(0, 0, number, torch.device("cpu"), "rollout", part=0)
        drawn = torch.multinomial(behind.exp(), 6, True, generator=rng)
        now = policy.detach().log_softmax(-1)
        weight = (now - behind).gather(1, drawn).softmax(-1)
        q = torch.stack(
            [
                sum(weight[:, k] * P[rows[:, 0], drawn[:, i], drawn[:, k]] for k in range(6))
                for i in range(6)
            ],
            -1,
        )
        centre = now if opponent == "anchor" else (1 - s * beta) * now + s * beta * log_mu
        for _ in range(epochs if isinstance(epochs, int) else epochs[number]):
            residual = (policy.log_softmax(-1) - centre).gather(1, drawn)
            if opponent == "anchor":
                loss = (residual - s * (q - 0.5)).square().mean(-1)
            else:
                d = residual - s * q
                loss = (d[:, :, None] - d[:, None, :]).square().sum((-2, -1)) / 30
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
        behind = now
    return policy.detach()


@pytest.mark.parametrize(
    "algorithm", [OnlineIPO(eta=0.7), SPPO(eta=0.7)], ids=lambda a: type(a).__name__
)
def test_who_draws_is_one_rollout_behind_and_the_answers_are_weighted(algorithm):
    game = make_game(algorithm, Sample(6, epochs=3, held_out=0, ahead=True))
    expected = by_hand(game, 4, 3, "anchor" if isinstance(algorithm, SPPO) else "policy")
    zoo.fit(game, rounds=4)
    found = game.policy.networks["policy"].logits.detach()
    torch.testing.assert_close(found, expected)


def test_it_goes_to_the_equilibrium():
    """With 100 responses the weights' bias and the noise leave little."""
    P, log_mu = zoo.small_games(C, N)
    game = OnlineGame(
        TabularPolicy(zoo.TensorReference(log_mu)),
        MatrixOracle(P),
        OnlineIPO(eta=2.0),
        0.3,
        optimizer=partial(torch.optim.Adam, lr=0.03),
        rollout=Sample(100, epochs=12, held_out=0, ahead=True),
        realisation=GradientSteps(),
    )
    start = exploitability(P, game.log_policy(), log_mu, 0.3)
    zoo.fit(game, rounds=25)
    left = exploitability(P, game.log_policy(), log_mu, 0.3)
    assert (left < 0.05 * start).all(), (left, start)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_same_prompts_are_asked_about_in_the_same_order(accumulate):
    """As without it, and none is drawn for a round that the budget has not."""
    asked, drawn = {}, []
    for ahead in (False, True):
        rollout = Sample(4, epochs=2, held_out=0, ahead=ahead)
        game = make_game(OnlineIPO(), rollout, micro_batches=2)
        asked[ahead] = counting_questions(game)
        begin = game.policy.begin_sample
        game.policy.begin_sample = lambda who, prompts, *rest, begin=begin: (
            drawn.append((who, prompts.ids.tolist())),
            begin(who, prompts, *rest),
        )[1]
        data = TablePrompts(batch_size=4 // accumulate, shuffle=True)
        zoo.fit(game, rounds=3, data=data, accumulate_grad_batches=accumulate)
    assert asked[True] == asked[False]
    assert [prompts for _, prompts in drawn] == asked[True]
    assert {tuple(who) for who, _ in drawn} == {("behind",)}


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but")
def test_prompts_that_were_not_drawn_for_are_refused():
    """Somebody's own loader hands over the same prompts in each round."""
    game = make_game(OnlineIPO(), Sample(4, epochs=2, held_out=0, ahead=True))
    game.rollout_prompts = 2
    batches = [game.oracle.prompts.take(range(4))] * 4
    trainer = rows.trainer(devices=1, limit_val_batches=0, max_steps=4)
    with pytest.raises(UserError, match="to other prompts than those that came"):
        trainer.fit(game, torch.utils.data.DataLoader(batches, batch_size=None))


def test_a_signal_within_a_gradient_step_leaves_who_draws_as_it_was():
    """The run goes back to where its rollout was not drawn yet, and draws it again."""
    rollout = Sample(4, epochs=2, held_out=0, ahead=True)
    game, behind = make_game(OnlineIPO(), rollout), []
    logits = game.policy.networks["behind"].logits

    class Signal(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if not game.accumulates:
                behind.append(logits.detach().clone())
            elif trainer.global_step == 4:  # of two steps a rollout
                game.accounts.signals.received = signal.SIGTERM

    with pytest.raises(StoppedBySignal):
        zoo.fit(
            game, rounds=4, data=TablePrompts(batch_size=2), callbacks=[Signal()],
            accumulate_grad_batches=2,
        )  # fmt: skip
    assert len(behind) == 4
    assert not torch.equal(behind[0], behind[-1])
    assert torch.equal(logits, behind[-1])


class Elsewhere(Generator):
    """An engine with weights of its own: a copy of the players as they were handed over."""

    draws_apart = True

    def __init__(self):
        self.threads, self.weights = [], []

    def draw(self, players, request):
        return self.begin(players, request)()

    def begin(self, players, request):
        copied = copy.deepcopy(players)
        self.weights.append({n: p.detach().clone() for n, p in players.named_parameters()})

        def draw():
            self.threads.append(threading.current_thread().name)
            return TransformersGenerator().draw(copied, request)

        return draw


def language_game(engine, oracle=SmallLanguage, **rollout):
    policy = CausalLMPolicy(
        SmallLanguageModel(hidden_size=16, layers=1, num_letters=4),
        LoRA(2),
        max_new_tokens=2,
        generator=engine,
    )
    options = {"epochs": 2, "held_out": 0, "ahead": True} | rollout
    return OnlineGame(
        policy, oracle(num_letters=4, length=2), OnlineIPO(), 0.1,
        optimizer=partial(torch.optim.AdamW, lr=0.02),
        rollout=Sample(8, **options), realisation=GradientSteps(),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Found .* module")
def test_an_engine_draws_in_a_thread_of_its_own_from_what_it_was_handed():
    """Its log-probabilities are those of the player that is one rollout behind, recomputed."""
    engine, gaps = Elsewhere(), []
    game = language_game(engine)
    improve = game.improve
    game.improve = lambda step, prompts, responses, payoffs: (
        gaps.append((game.reuse.log_probs.sampler - responses.log_prob).abs().max()),
        improve(step, prompts, responses, payoffs),
    )[1]
    zoo.fit(game, rounds=4)
    assert engine.threads == ["MainThread", *3 * ["ahead"]]
    assert max(gaps) < 1e-4
    names = [name for name in engine.weights[0] if ".behind." in name and "lora_B" in name]
    moved = [
        any(not torch.equal(one[name], other[name]) for name in names)
        for one, other in zip(engine.weights[1:], engine.weights[2:], strict=False)
    ]
    assert names
    assert all(moved)  # each rollout is of another policy


@pytest.mark.filterwarnings("ignore:Found .* module")
def test_an_engine_that_fails_meanwhile_ends_the_run_by_its_error():
    class Failing(Elsewhere):
        def begin(self, players, request):
            if not self.weights:
                return super().begin(players, request)
            raise_ = UserError("the engine is gone")

            def draw():
                raise raise_

            return draw

    with pytest.raises(UserError, match="the engine is gone"):
        zoo.fit(language_game(Failing()), rounds=3)


AHEAD = {"epochs": 2, "ahead": True}
REFUSED = [
    (NashMP(self_play=True), Sample(6, **AHEAD), "draws for one proximal step a round"),
    (EGPO(), Sample(6, **AHEAD), "draws for one proximal step a round"),
    (NashMD(), Sample(6, **AHEAD), "and NashMD takes another"),
    (XPO(), Sample(6, **AHEAD), "and XPO takes another"),
    (SPPO(scored=Decoding(temperature=0.7)), Sample(6, **AHEAD), "of whole responses"),
    (OnlineIPO(surrogate=policy_gradient), Sample(6, **AHEAD), "does not learn from that"),
    (OnlineIPO(), Sample(6, pairs="circle", **AHEAD), "weighs all pairs anew"),
]


@pytest.mark.parametrize(("algorithm", "rollout", "sentence"), REFUSED)
def test_what_cannot_be_drawn_ahead_is_refused(algorithm, rollout, sentence):
    with pytest.raises(UserError, match=sentence):
        make_game(algorithm, rollout)


def test_a_policy_that_draws_with_the_weights_that_train_is_refused():
    with pytest.raises(UserError, match="needs an engine that draws while CausalLMPolicy"):
        language_game(TransformersGenerator())
    with pytest.raises(ValueError, match="set epochs too"):
        Sample(6, ahead=True)


def test_online_dpo_draws_ahead_too():
    game = make_game(OnlineDPO(), Sample(6, **AHEAD))
    zoo.fit(game, rounds=2)
    assert game.progress.rollouts == 2
