"""Each public hook of the game is one that the loop takes: a subclass may override it."""

import inspect
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from zoo import fit, small_game

from nlhf_zoo.algorithms import NashMP
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import ClosedForm, GradientSteps, Realisation
from nlhf_zoo.game.rollout import Sample

ROUNDS = 5
STEPS = 2 * 3 * ROUNDS  # Nash-MP has two proximal steps a round, here of three gradient steps each

# How often a run of gradient steps calls each method that a subclass may override.
CALLS = {
    "training_step": STEPS,
    "surrogate_loss": STEPS,
    "play_and_judge": STEPS,
    "judge": 2 * STEPS,  # for each micro-batch
    "improve": STEPS,
    "on_after_backward": STEPS,
    "on_before_optimizer_step": STEPS,
    "optimizer_step": STEPS,
    "begin_round": ROUNDS + 1,
    "rounds_left": STEPS + 1 + ROUNDS + 1,  # is it spent, and how much of it
    "copy_": ROUNDS,  # to the lookahead
    "lerp_": ROUNDS,  # of the anchor
    "configure_optimizers": 1,
    "setup": 1,
    "on_train_start": 1,
    "on_train_end": 1,
    "on_save_checkpoint": 1,
    "set_budget": 1,
}
# Without a trainer's call in such a run: of validation, prediction, resumes; or what is asked for.
OTHERS = {
    "validation_step", "test_step", "predict_step", "on_validation_epoch_end", "on_test_epoch_end",
    "on_load_checkpoint",
    "log_policy", "add_metric", "position", "rewind", "set_before_stop", "queries_per_round",
}  # fmt: skip
OWN = {n for n, m in vars(OnlineGame).items() if inspect.isfunction(m) and not n.startswith("_")}


def counting() -> tuple[type[OnlineGame], Counter[str]]:
    """A subclass that overrides every public method, and how often each was called."""
    calls: Counter[str] = Counter()

    def overridden(name: str) -> Any:
        def method(self: OnlineGame, *args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return getattr(OnlineGame, name)(self, *args, **kwargs)

        return method

    hooks = OWN - {"configure_optimizers", "training_step"}  # whose signature Lightning reads
    made = type("Counting", (OnlineGame,), {name: overridden(name) for name in hooks})

    class Counting(made):  # type: ignore[misc, valid-type]
        def training_step(self, prompts: Any, batch_idx: int) -> Any:
            calls["training_step"] += 1
            return super().training_step(prompts, batch_idx)

        def configure_optimizers(self) -> Any:
            calls["configure_optimizers"] += 1
            return super().configure_optimizers()

    return Counting, calls


def play(game_class: type[OnlineGame], realisation: Realisation, **parts: Any) -> OnlineGame:
    algorithm = NashMP(kappa=0.5, inner_steps=3)
    game = small_game(algorithm, game_class=game_class, realisation=realisation, **parts)
    return fit(game, ROUNDS)


def test_every_public_method_is_named_here():
    assert CALLS.keys() | OTHERS == OWN


@pytest.mark.parametrize("overlap", [False, True])
def test_the_loop_takes_each_hook(overlap: bool, tmp_path):
    game_class, calls = counting()
    parts = {"rollout": Sample(4, 2), "micro_batches": 2, "overlap_judging": overlap}
    game = play(game_class, GradientSteps(), **parts)
    game.trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert {name: calls[name] for name in CALLS} == CALLS
    assert game.progress.round == ROUNDS


def test_the_closed_form_takes_the_hooks_that_it_has():
    game_class, calls = counting()
    game = play(game_class, ClosedForm(rounds_per_step=2))
    assert game.progress.round == ROUNDS
    assert calls["training_step"] == 3
    assert calls["configure_optimizers"] == calls["on_train_start"] == calls["set_budget"] == 1
    assert not {"play_and_judge", "judge", "improve"} & calls.keys()


def test_what_a_subclass_judges_is_what_is_trained_on():
    """An overridden judge that finds all responses equal leaves a policy at the reference."""

    class Indifferent(OnlineGame):
        def judge(self, *args: Any) -> Any:
            said = super().judge(*args)
            return replace(said, payoff=torch.full_like(said.payoff, 0.5))

    moved = {}
    for game_class in (OnlineGame, Indifferent):
        game = play(game_class, GradientSteps())
        moved[game_class] = (game.log_policy() - game.log_policy("reference")).abs().max()
    assert moved[Indifferent] < 1e-9
    assert moved[OnlineGame] > 1e-3
