"""What is held of a rollout, in memory and on disk: resumed, refused, lost and let go."""

import os
from dataclasses import replace

import lightning as L
import pytest
import torch
import zoo

from game.test_reuse import C, N, make_game
from nlhf_zoo import BudgetLR
from nlhf_zoo.algorithms import XPO, NashMP, OnlineIPO
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.game.held_rollout import Schedule
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.playing import run_of
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles import ListedResponses, MatrixOracle, RuleOracle
from nlhf_zoo.oracles.rules import LengthBetween
from nlhf_zoo.policies import TabularPolicy


def held_game(folder, algorithm=None, **kwargs):
    options = {"epochs": 3, "minibatch": 2, "held_out": 0} | kwargs
    game = make_game(algorithm or OnlineIPO(), Sample(6, **options), micro_batches=2)
    game.reuse.folder = folder
    return game


def counting_questions(game):
    """The prompts of each call of the oracle, from now on."""
    asked, forward = [], game.oracle.forward
    game.oracle.forward = lambda prompts, *pair: (
        asked.append(prompts.ids.tolist()),
        forward(prompts, *pair),
    )[1]
    return asked


@pytest.mark.parametrize("algorithm", [OnlineIPO(), XPO(0.1)], ids=["OnlineIPO", "XPO"])
def test_parts_that_were_judged_are_not_asked_about_again(algorithm, tmp_path):
    """With what was drawn beside them, and not judged."""
    first = zoo.fit(held_game(tmp_path, algorithm), rounds=1)
    second = held_game(tmp_path, algorithm)
    asked = counting_questions(second)
    zoo.fit(second, rounds=1)
    assert asked == []
    assert second.progress == first.progress
    for name, tensor in first.policy.state_dict().items():
        assert torch.equal(tensor, second.policy.state_dict()[name])
    (part, other) = sorted(tmp_path.rglob("*.safetensors"))
    other.unlink()  # as if it had been killed while the second part was judged
    third = held_game(tmp_path, algorithm)
    asked = counting_questions(third)
    zoo.fit(third, rounds=1)
    assert asked == [[2, 3]]
    assert third.progress == first.progress
    part.write_bytes(part.read_bytes()[:-100])  # what is damaged is asked about again
    fourth = held_game(tmp_path, algorithm)
    asked = counting_questions(fourth)
    zoo.fit(fourth, rounds=1)
    assert asked == [[0, 1], [2, 3]]


def other_weights(game):
    with torch.no_grad():
        game.policy.networks["policy"].logits += 1e-6


def other_judge(game):
    game.oracle.preference[0, 0, 1] -= 1e-6


def other_seed(game):
    os.environ["PL_GLOBAL_SEED"] = "5"


def later_rollout(game):
    game.progress.rollouts += 1


@pytest.mark.parametrize("change", [other_weights, other_judge, other_seed, later_rollout])
def test_a_part_of_another_rollout_is_never_taken_for_it(change, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    zoo.fit(held_game(tmp_path), rounds=1)
    game = held_game(tmp_path)
    change(game)
    asked = counting_questions(game)
    zoo.fit(game, rounds=1)
    assert asked == [[0, 1], [2, 3]]


def test_responses_that_were_asked_about_make_no_other_oracle(tmp_path):
    """Or a rollout that is drawn behind the first use would not be found by a resumed run."""
    file = tmp_path / "listed.jsonl"
    file.write_text('{"prompt": "a", "responses": ["b", "cc", "ddd"]}\n')
    oracle = ListedResponses(RuleOracle(LengthBetween(1, 2)), file)
    rollout, gradient = Sample(4, epochs=1), GradientSteps()
    game = OnlineGame(
        TabularPolicy(), oracle, OnlineIPO(), 0.1, rollout=rollout, realisation=gradient
    )
    before = run_of(game)
    assert oracle.table.shape == (1, 3, 3)
    assert run_of(game) == before


def test_a_rollout_that_is_lost_is_drawn_anew_and_that_is_said(capsys):
    """In the middle of a proximal step, without a folder of rollouts."""
    game = held_game(None)
    game.progress.rollouts = game.progress.epoch = game.progress.gradient_step = 1
    asked = counting_questions(game)
    zoo.fit(game, max_steps=1)
    assert asked == [[0, 1], [2, 3]]
    assert "responses are drawn and judged anew" in capsys.readouterr().err
    assert game.progress.rollouts == 2


def test_the_folder_holds_what_the_last_two_checkpoints_go_on_with(tmp_path):
    game = held_game(tmp_path, epochs=1, minibatch=None)

    class Named(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if pl_module.progress.round in (2, 4):
                pl_module.reuse.named_by_checkpoint()

    zoo.fit(game, rounds=7, callbacks=[Named()])
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [1, 3, 6]


def test_each_part_has_a_random_stream_of_its_own():
    P, log_mu = zoo.small_games(1, N)
    policy = TabularPolicy(zoo.TensorReference(log_mu.expand(2, -1)))
    game = OnlineGame(
        policy, MatrixOracle(P.expand(2, -1, -1)), OnlineIPO(), zoo.BETA,
        rollout=Sample(40, epochs=1), realisation=GradientSteps(), micro_batches=2,
    )  # fmt: skip
    drawn = []
    play_and_judge = game.play_and_judge
    game.play_and_judge = lambda *given: drawn.append(play_and_judge(*given)) or drawn[-1]
    zoo.fit(game, rounds=2)
    rows = [row for responses, _ in drawn for row in responses.actions.tolist()]
    assert len({tuple(row) for row in rows}) == 4


def test_a_proximal_step_is_not_gone_on_with_in_other_minibatches(tmp_path):
    """After a resume, or in a second fit, which has another number of them."""
    game = held_game(tmp_path, minibatch=1)
    zoo.fit(game, max_steps=3)
    assert (game.progress.epoch, game.progress.minibatch) == (0, 3)
    with pytest.raises(UserError, match="was begun on a rollout of 4 prompts"):
        zoo.fit(game, max_steps=2, accumulate_grad_batches=2)
    assert game.progress.rollouts == 1


def test_both_half_steps_hold_out_the_same_prompts():
    game = make_game(NashMP(self_play=True), Sample(6, epochs=1, minibatch=1, held_out=0.5))
    start = game.policy.networks["policy"].logits.detach().clone()
    zoo.fit(game, rounds=1)
    rows = Schedule(C, 1, 1, held_out=0.5).held_out_rows(0, 0)
    for player in ("policy", "lookahead"):
        moved = (game.policy.networks[player].logits.detach() != start).any(-1)
        assert (~moved).nonzero()[:, 0].tolist() == sorted(row for part in rows for row in part)


def test_an_oracle_that_answers_nothing_is_found_out_before_it_is_trained_on():
    game = make_game(OnlineIPO(), Sample(6, epochs=20, minibatch=1, held_out=0))
    forward = game.oracle.forward

    def silent(*given):
        answer = forward(*given)
        return replace(answer, valid=torch.zeros_like(answer.valid))

    game.oracle.forward = silent
    with pytest.raises(OracleStoppedError, match="no valid answer to 100%"):
        zoo.fit(game, rounds=1)
    assert game.trainer.global_step == 0


def test_a_rate_over_the_budget():
    """A straight line over the rounds, half steps and gradient steps alike; without an end, no."""
    rates = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    game = make_game(
        NashMP(self_play=True),
        Sample(6, epochs=2, minibatch=2, held_out=0),
        lr_scheduler=lambda optimizer: BudgetLR(optimizer, end=0.2),
    )
    zoo.fit(game, rounds=2, callbacks=[Rates()])
    assert rates == pytest.approx([0.05 * (1 - 0.8 * step / 16) for step in range(16)])
    game = make_game(OnlineIPO(), Sample(6, epochs=2), lr_scheduler=BudgetLR)
    asked = counting_questions(game)
    with pytest.raises(UserError, match="follows the budget, but there is none"):
        zoo.fit(game, max_epochs=1)
    assert asked == []
