"""What is not finite replaces no checkpoint, is not resumed, and nothing is trained from it."""

import copy
import math
import shutil
from functools import partial
from pathlib import Path

import lightning as L
import preference_runs
import pytest
import torch
from language_models import new_folder, tiny_folder, tuned_adapter
from safetensors.torch import load_file, save_file
from text_models import folder as classifier
from zoo import fit, small_game

from nlhf_zoo import EGPO, GameCheckpoint, GradientSteps, OnlineGame
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.oracles import RewardModelOracle
from nlhf_zoo.policies import CausalLMPolicy
from nlhf_zoo.preference_models import BradleyTerryHead, PretrainedBackbone
from nlhf_zoo.records.finite import not_finite

NAN = math.nan


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_number_among_many_is_found(value, dtype):
    whole = torch.linspace(-3e4, 3e4, 999, dtype=torch.float64).to(dtype)
    broken = whole.clone()
    broken[-1] = value
    others = {"whole": whole, "integers": torch.arange(3), "empty": torch.empty(0)}
    assert not_finite(others) is None
    assert not_finite({**others, "broken": broken, "also": broken}) == "broken"


NAMES = ("last.ckpt", "previous.ckpt")


def new_game() -> OnlineGame:
    game = small_game(EGPO(), realisation=GradientSteps())
    game.optimizer = partial(torch.optim.Adam, lr=0.1)
    return game


class Spoil(L.Callback):
    """Put a number that is not finite in one place, after a step."""

    def __init__(self, where: str, step: int) -> None:
        self.where, self.step = where, step

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if trainer.global_step != self.step:
            return
        networks = pl_module.policy.networks
        (state,) = trainer.optimizers[0].state.values()
        start = pl_module.round_start
        places = {
            "policy": networks["policy"].logits,
            "lookahead": networks["lookahead"].logits,
            "moment": state["exp_avg_sq"],
            "start": next(iter(start["policy"].values())),
            "moment of the start": next(iter(start["optimizer"].values()))["exp_avg"],
        }
        with torch.no_grad():
            places[self.where].view(-1)[3] = math.inf if self.where == "moment" else NAN


PLACES = {
    "policy": r"policy\.networks\.policy\.logits of the player policy",
    "lookahead": r"policy\.networks\.lookahead\.logits of the player lookahead",
    "moment": r"exp_avg_sq of policy\.networks\.policy\.logits of the player policy",
    "start": r"logits at the start of the round",
    "moment of the start": r"exp_avg of parameter 0 at the start of the round",
}


def ends(folder: Path, spoil: Spoil, interval: int, rounds: int, sentence: str) -> None:
    """Train, with checkpoints, until the run ends with a sentence."""
    checkpoint = GameCheckpoint(every_n_train_steps=interval, dirpath=str(folder))
    options = {"callbacks": [spoil, checkpoint], "enable_checkpointing": True}
    with quiet(), pytest.raises(DivergenceError, match=sentence):
        fit(new_game(), rounds, default_root_dir=folder, **options)


@pytest.mark.parametrize("where", PLACES)
def test_the_last_good_checkpoint_stays(where, tmp_path):
    """Behind the third step of two a round; the only checkpoint was replaced, without a word."""
    sentence = f"step 3, in round 1, {PLACES[where]} is not finite, .*; .*last.ckpt stays as it was"
    ends(tmp_path, Spoil(where, 3), 1, 9, sentence)
    last, previous = (torch.load(tmp_path / name, weights_only=True) for name in NAMES)
    assert (last["global_step"], previous["global_step"]) == (2, 1)
    assert not_finite(last["state_dict"]) is None
    assert {path.name for path in tmp_path.glob("*.ckpt*")} == set(NAMES)


def test_the_last_step_is_looked_at_too(tmp_path):
    ends(tmp_path, Spoil("policy", 4), 1000, 2, "after optimiser step 4, in round 2")
    assert not list(tmp_path.glob("*.ckpt*"))


def test_weights_that_are_not_finite_are_not_resumed():
    game = new_game()
    checkpoint = {"state_dict": game.state_dict()}
    game.on_save_checkpoint(checkpoint)
    checkpoint = copy.deepcopy(checkpoint)
    checkpoint["state_dict"]["policy.networks.lookahead.logits"][0, 0] = NAN
    with pytest.raises(UserError, match=r"had diverged, for its policy.networks.lookahead.logits"):
        new_game().on_load_checkpoint(checkpoint)


def test_a_preference_model_that_is_not_finite_is_not_written(tmp_path, monkeypatch):
    original = L.LightningModule.optimizer_step

    def spoil(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.global_step == 1:  # counted a little later
            next(p for p in self.parameters() if p.requires_grad).data.view(-1)[0] = NAN

    monkeypatch.setattr(L.LightningModule, "optimizer_step", spoil)
    config = preference_runs.configuration(tmp_path)
    for callbacks in (config["trainer"]["callbacks"], []):
        config["trainer"] |= {"callbacks": callbacks, "max_steps": 2}
        path = preference_runs.write(tmp_path, config)
        said = preference_runs.refused("fit", "--config", path)
        assert "training diverged: after optimiser step 2" in said
    (saved,) = tmp_path.rglob("last.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] == 1
    for written in tmp_path.rglob("model.safetensors"):
        assert not_finite(load_file(written)) is None


def broken(source: Path, file: str) -> str:
    """A copy of a folder in which one weight has a number that is not finite."""
    folder = new_folder() / "broken"
    shutil.copytree(source, folder)
    weights = load_file(folder / file)
    name = max(weights)  # any
    weights[name].view(-1)[-1] = NAN
    save_file(weights, folder / file, metadata={"format": "pt"})
    return str(folder)


def test_base_weights_are_finite():
    """They were refused for an adapter that "does nothing", or trained into a NaN."""
    llama, reward = (Path(tiny_folder("llama")), Path(classifier("llama")))
    weights, adapter = "model.safetensors", "adapter_model.safetensors"
    makers = [
        lambda: CausalLMPolicy(broken(llama, weights)).bind((), None),
        lambda: CausalLMPolicy(str(llama), adapter=broken(tuned_adapter(), adapter)).bind((), None),
        lambda: RewardModelOracle(broken(reward, weights)),
        lambda: PretrainedBackbone(broken(reward, weights)).load(BradleyTerryHead()),
    ]
    for make in makers:
        with pytest.raises(UserError, match=r"broken has weights that are not finite, .* among"):
            make()
