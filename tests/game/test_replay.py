"""Earlier rollouts that a step is trained on, too: weighed for its opponent, counted once, held."""

import shutil

import lightning as L
import pytest
import rows
import torch
import zoo

from game.test_held_rollouts import counting_questions
from game.test_reuse import C, adam, make_game
from game.test_samplers import language_game
from nlhf_zoo.algorithms import EGPO, SPPO, XPO, MovingMagnet, NashMD, NashMP, OnlineDPO, OnlineIPO
from nlhf_zoo.algorithms.surrogates import policy_gradient
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.held_rollout import FrozenLogProbs, HeldRollout
from nlhf_zoo.game.replay import weighed
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.records import Decoding
from nlhf_zoo.records.random_streams import random_stream

HELD = {"epochs": 3, "minibatch": 2, "held_out": 0}


# ---- what is trained on ----


def drawn_by(game, who, num, seed=0):
    """A rollout of a mixture, compared among themselves."""
    prompts, rng = zoo.all_prompts(game), torch.Generator().manual_seed(seed)
    step = game.step.drawn_by(who)
    responses = game.policy.sample(who, prompts, num, step.scored, rng)
    payoffs = game.estimator._among_themselves(prompts, responses, None)
    log_probs = FrozenLogProbs.of(game.policy, step, prompts, responses)
    return HeldRollout(0, 0, prompts, responses, payoffs, log_probs)


@pytest.mark.parametrize("who", [{"reference": 1.0}, {"policy": 0.5, "reference": 0.5}])
def test_answers_among_earlier_responses_are_those_against_the_opponent(who):
    """As far as 1,000 responses say; unweighed they are those against who drew them."""
    game = make_game(OnlineIPO(), Sample(6, epochs=1))
    zoo.scatter_players(game)
    held = drawn_by(game, who, 1000)
    (step,), prompts = game.plan, zoo.all_prompts(game)
    found, size = weighed(game, step, held, ["policy", "reference"])
    opponent = game.policy.distribution({"policy": 1.0}, prompts).exp().detach()
    exact = (game.oracle.table @ opponent[:, :, None])[:, :, 0]
    exact = exact.gather(1, held.responses.actions)
    assert (found.payoffs.payoff - exact).abs().max() < 0.05
    assert (held.payoffs.payoff - exact).abs().max() > 0.1
    law = game.policy.distribution(who, prompts).exp().detach()
    share = 1 / (opponent**2 / law).sum(-1)  # of K, as K grows
    torch.testing.assert_close(size / 1000, share, rtol=0.1, atol=0.0)


def by_hand(game, rounds, epochs, replay):
    """Mirror descent on each rollout and those before it, in plain torch: logits [C, N]."""
    log_mu, P, s, beta = game.policy.log_reference, game.oracle.table, 0.7, zoo.BETA
    policy = torch.nn.Parameter(game.policy.networks["policy"].logits.detach().clone())
    optimizer, earlier, rows = adam([policy]), [], torch.arange(C)
    for number in range(rounds):
        rng = random_stream(0, 0, number, torch.device("cpu"), "rollout", part=0)
        now = policy.detach().log_softmax(-1)
        earlier = [(torch.multinomial(now.exp(), 6, True, generator=rng), now), *earlier]
        centre, targets = (1 - s * beta) * now + s * beta * log_mu, []
        for drawn, law in earlier[: 1 + replay]:
            weight = (now - law).gather(1, drawn).softmax(-1)
            q = [
                sum(weight[:, k] * P[rows, drawn[:, i], drawn[:, k]] for k in range(6))
                for i in range(6)
            ]
            targets.append((drawn, centre.gather(1, drawn) + s * torch.stack(q, -1)))
        for _ in range(epochs):
            losses = []
            for drawn, target in targets:
                d = policy.log_softmax(-1).gather(1, drawn) - target
                losses.append((d[:, :, None] - d[:, None, :]).square().sum((-2, -1)) / 30)
            optimizer.zero_grad()
            torch.cat(losses).mean().backward()
            optimizer.step()
    return policy.detach()


@pytest.mark.parametrize("replay", [1, 2])
def test_a_step_is_trained_on_the_rollouts_before_it_as_by_hand(replay):
    game = make_game(OnlineIPO(eta=0.7), Sample(6, epochs=3, held_out=0, replay=replay))
    expected = by_hand(game, 4, 3, replay)
    asked = counting_questions(game)
    zoo.fit(game, rounds=4)
    torch.testing.assert_close(game.policy.networks["policy"].logits.detach(), expected)
    assert asked == [[*range(C)]] * 4  # each rollout once
    assert game.progress.queries_per_prompt == 4 * 15
    assert 1 < game.trainer.callback_metrics["rollout/effective_sample_size"] < 6


@pytest.mark.parametrize(
    "algorithm", [NashMP(self_play=True), NashMP(self_play=True, reweighted=True), OnlineDPO()],
    ids=["NashMP", "reweighted", "OnlineDPO"],
)  # fmt: skip
def test_nothing_is_asked_for_what_is_replayed(algorithm):
    counted = []
    for replay in (0, 3):
        game = make_game(algorithm, Sample(6, replay=replay, **HELD), micro_batches=2)
        asked = counting_questions(game)
        zoo.fit(game, rounds=3)
        counted.append((game.progress, asked, game.queries_per_round()))
    assert counted[0] == counted[1]


@pytest.mark.filterwarnings("ignore:Found .* module")
def test_a_language_model_replays_responses_to_other_prompts():
    game, seen = language_game(OnlineIPO(), epochs=2, held_out=0, replay=2), []
    improve = game.improve
    game.improve = lambda step, prompts, responses, payoffs: (
        seen.append((prompts.ids.tolist(), prompts.tokens.tolist(), responses.weight.shape[0])),
        improve(step, prompts, responses, payoffs),
    )[1]
    zoo.fit(game, rounds=3, data=TablePrompts(batch_size=1))
    rounds = [seen[2 * number] for number in range(3)]
    own = [ids[0] for ids, *_ in rounds]
    assert len({*own}) == 2
    assert [ids for ids, *_ in rounds] == [own[:1], own[1::-1], own[::-1]]
    assert [number for *_, number in rounds] == [1, 2, 3]
    assert rounds[2][1] == [rounds[number][1][0] for number in (2, 1, 0)]


# ---- kill and resume ----


class Saves(L.Callback):
    """Writes a checkpoint behind a training step, and keeps the rollouts as they are then."""

    def __init__(self, game, step, folder):
        self.game, self.step, self.folder = game, step, folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            pl_module.reuse.named_by_checkpoint()
            trainer.save_checkpoint(self.folder / "kept.ckpt")
            shutil.copytree(pl_module.reuse.folder, self.folder / "kept")


def replaying(folder, algorithm):
    game = make_game(algorithm, Sample(6, replay=2, **HELD), micro_batches=2)
    game.reuse.folder = folder
    return game


def resumed(game, ckpt, rounds):
    callbacks = [zoo.Budget(rounds=rounds)]
    trainer = rows.trainer(devices=1, limit_val_batches=0, callbacks=callbacks)
    trainer.fit(game, TablePrompts(), ckpt_path=ckpt, weights_only=True)


@pytest.mark.parametrize(
    ("algorithm", "step"),
    [
        (OnlineIPO(), 14),  # of six steps a round: within the third
        (OnlineIPO(), 18),  # between two
        (NashMP(self_play=True), 33),  # within the second half step of the third
        (NashMP(self_play=True, reweighted=True), 33),
        (EGPO(self_play=True, reweighted=True), 24),
    ],
    ids=lambda value: getattr(value, "paper", str(value)),
)
def test_a_run_that_is_resumed_replays_the_same(algorithm, step, tmp_path):
    whole = replaying(tmp_path / "rollouts", algorithm)
    zoo.fit(whole, rounds=4, callbacks=[Saves(whole, step, tmp_path)])
    again = replaying(tmp_path / "kept", algorithm)
    resumed(again, tmp_path / "kept.ckpt", 4)
    assert again.progress == whole.progress
    for name, tensor in whole.policy.state_dict().items():
        assert torch.equal(tensor, again.policy.state_dict()[name]), name


@pytest.mark.parametrize(("step", "rollouts"), [(18, 4), (14, 5)])
def test_a_run_whose_rollouts_are_lost_says_so_and_goes_on(step, rollouts, tmp_path, capsys):
    whole = replaying(tmp_path / "rollouts", OnlineIPO())
    zoo.fit(whole, rounds=3, callbacks=[Saves(whole, step, tmp_path)])
    again = replaying(tmp_path / "nothing", OnlineIPO())
    resumed(again, tmp_path / "kept.ckpt", 4)
    said = "Earlier rollouts that would be replayed are not there any more"
    anew = "responses are drawn and judged anew"
    assert (said if step == 18 else anew) in capsys.readouterr().err
    assert again.progress.rollouts == rollouts


# ---- what is refused ----

REFUSED = [
    (NashMD(), {}, "asks about opponents of their own"),
    (OnlineIPO(), {"sampler": "reference"}, "asks about opponents of their own"),
    (OnlineIPO(surrogate=policy_gradient), {}, "has OnlineIPO learn from responses of earlier"),
    (SPPO(scored=Decoding(top_k=2)), {}, "what top_k, top_p or min_p leave out"),
    (OnlineDPO(), {"greedy": True}, "a greedy one was not drawn by a law"),
    (MovingMagnet(XPO()), {}, "has MovingMagnet explore what an earlier magnet wrote"),
    (OnlineIPO(), {"pairs": "circle"}, "weighs all pairs anew, and model.rollout.pairs circle"),
]


@pytest.mark.parametrize(("algorithm", "options", "sentence"), REFUSED)
def test_what_cannot_be_replayed_is_refused(algorithm, options, sentence):
    with pytest.raises(UserError, match=sentence):
        make_game(algorithm, Sample(6, epochs=2, replay=1, **options))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"replay": 1}, "set epochs too"),
        ({"replay": -1, "epochs": 1}, "replay must lie between 0 and 100"),
        ({"replay": 1, "epochs": 1, "ahead": True}, "set one of them alone"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sample(6, **options)
