"""The mean of a loss, figures, counts and decisions are of all processes, however uneven."""

import math

import pytest
import torch
import zoo
from together import together

from nlhf_zoo.algorithms import OnlineDPO
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.data.stream import own_share
from nlhf_zoo.errors import DivergenceError, OracleStoppedError, UserError
from nlhf_zoo.game.realisation import GradientSteps
from nlhf_zoo.game.rollout import Enumerate, Sample
from nlhf_zoo.metrics.processes import (
    Largest,
    Mean,
    StepMean,
    counts_of_each,
    of_all_processes,
    refuse_uneven_batches,
)

GAMES = 5


def make(algorithm, rollout=None, silent=(0, 1), **parts):
    game = zoo.small_game(
        algorithm, GAMES, wrap=lambda oracle: zoo.Silent(oracle, silent),
        rollout=rollout or Enumerate(), realisation=GradientSteps(), **parts,
    )  # fmt: skip
    zoo.scatter_players(game)
    return game


def gradients(game, prompts):
    loss = game.training_step(prompts, 0)
    return torch.autograd.grad(loss, game.policy.networks["policy"].logits)[0]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("row", zoo.GRADIENT, ids=str)
def test_gradients_are_those_of_one_process(row, size):
    """Five games in uneven shares; no answer about two, which leaves a process without any."""

    def of_process(trainer):
        game = make(row.make())
        game.progress.step = number
        game._trainer, logged = trainer, {}
        game.log = lambda tag, value, **_: logged.update({tag: value})
        share = own_share(GAMES, trainer.global_rank, size)
        return gradients(game, zoo.all_prompts(game).take(share)), logged, game

    for number in range(len(row.make().steps(zoo.BETA, 0))):
        whole = make(row.make())
        whole.progress.step = number
        expected = gradients(whole, zoo.all_prompts(whole))
        assert expected[2:].abs().amax(-1).min() > 0
        found = together(size, of_process)
        mean = sum(gradient for gradient, _, _ in found) / size  # as DDP has it
        torch.testing.assert_close(mean, expected, atol=1e-12 * float(expected.abs().max()), rtol=0)
        # All count, and log, the same.
        for _, logged, game in found:
            assert game.progress == whole.progress
            assert logged == found[0][1]


def test_a_process_with_a_loss_that_is_not_finite_ends_all():
    def of_process(trainer):
        game = make(OnlineDPO(), silent=())
        game._trainer, game.log = trainer, None
        if trainer.global_rank == 1:
            game.algorithm.loss = lambda step, batch: batch.log_prob.sum(-1) * math.nan
        with pytest.raises(DivergenceError, match="the loss is nan"):
            gradients(game, zoo.all_prompts(game))
        return True

    assert together(2, of_process) == [True, True]


def test_too_many_invalid_answers_are_counted_together():
    """One process has no answers at all, the other has all: half is not more than is allowed."""

    def of_process(trainer, limit):
        game = make(OnlineDPO(), Sample(4, 1), range(2))
        game.accounts.max_invalid = limit
        game._trainer, game.log = trainer, lambda *_, **__: None
        own = zoo.all_prompts(game).take([[0, 1], [2, 3]][trainer.global_rank])
        for _ in range(30):
            game.training_step(own, 0)
        return game.progress

    one, other = together(2, lambda trainer: of_process(trainer, 0.5))
    assert one == other
    assert one.invalid * 2 == one.queries > 0
    assert one.unjudged == 30 * 2
    with pytest.raises(OracleStoppedError, match="no valid answer to 50%"):
        together(2, lambda trainer: of_process(trainer, 0.4))


def test_queries_of_a_prompt_are_one_number():
    """One process asks again about what was not answered: the budget ends both together."""

    def of_process(trainer):
        game = make(zoo.AgainstOne({"anchor": 1.0}), silent=(0,))
        game._trainer, game.log = trainer, lambda *_, **__: None
        own = zoo.all_prompts(game).take([[0], [1]][trainer.global_rank])
        for number in range(2):  # the anchor stays, and its product is remembered
            game.progress.step, game._accumulated = number, 0
            game.training_step(own, 0)
        return game.progress

    one, other = together(2, of_process)
    assert one == other
    assert (one.queries, one.queries_per_prompt) == (3, 2)


@pytest.mark.parametrize("size", [2, 3])
def test_figures_of_all(size):
    def of_process(trainer):
        rank = trainer.global_rank
        figures = {
            "mean": Mean(torch.tensor(float(rank)), rank),  # of numbers that are 1
            "none": Mean(torch.tensor(0.0), 0),
            "largest": Largest(torch.tensor(-1.0 - rank)),
        }
        return of_all_processes(trainer, figures), counts_of_each(trainer, [rank, 7])

    for figures, counts in together(size, of_process):
        assert {tag: float(one.value) for tag, one in figures.items()} == {
            "mean": 1.0, "none": 0.0, "largest": -1.0
        }  # fmt: skip
        assert counts == [[rank, 7] for rank in range(size)]
    assert of_all_processes(None, {}) == {}


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([3, 2], "the processes have 3, 2 training batches"),
        ([math.inf, 2], "the processes have endless, 2 training batches"),
        ([4, 4], "the processes have 1, 2 validation batches"),
    ],
)
def test_a_process_with_fewer_batches_is_refused_in_all(batches, words):
    def of_process(trainer):
        trainer.num_training_batches = batches[trainer.global_rank]
        trainer.num_val_batches = [7, trainer.global_rank + 1]
        with pytest.raises(UserError, match=words):
            refuse_uneven_batches(trainer)
        return True

    assert together(2, of_process) == [True, True]


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("row", zoo.GRADIENT[:4], ids=str)
def test_accumulated_batches_weigh_by_what_was_judged(row, clip):
    """Whatever batch the missing answers lie in, the first among them; clipping comes after."""
    whole, parts = (make(row.make(), silent=(0, 3), max_invalid=1) for _ in range(2))
    zoo.fit(whole, 2, TablePrompts(batch_size=GAMES), gradient_clip_val=clip)
    zoo.fit(
        parts, 2, TablePrompts(batch_size=1), accumulate_grad_batches=GAMES, gradient_clip_val=clip
    )
    for player, network in whole.policy.networks.items():
        one, other = network.logits, parts.policy.networks[player].logits
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    assert parts.progress.round == 2


def test_batches_that_are_judged_alike_keep_their_bits():
    mean, parameter = StepMean(), torch.nn.Parameter(torch.tensor(1 / 3))
    for number in range(3):
        own = Mean(parameter * 7, 4)
        loss, _ = mean.take(None, own, {}, begins=number == 0)
        assert torch.equal(loss, parameter * 7 / 4)
    parameter.grad = torch.tensor(0.1)
    mean.complete(torch.optim.SGD([parameter], lr=1.0), 3)
    assert torch.equal(parameter.grad, torch.tensor(0.1))
