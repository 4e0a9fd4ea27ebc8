"""`nlhf fit` under the strategy fsdp2: as under DDP, resumed wherever it was stopped, exported."""

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Run, nlhf, nlhf_ranks
from language_models import tiny_folder
from paths import ROOT
from runs import LAST, RUN, configuration, differences, load, part, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EACH_WAY = pytest.mark.parametrize("lora", [{"r": 4}, None], ids=["lora", "full"])
TEXTS = ("go on.", "a", "to be or not?", "be", "oh no")
CKPT = RUN / "checkpoints/last.ckpt"
HELD = part("Sample", num_responses=2, num_opponents=2, epochs=2)


def game(lora: dict[str, Any] | None, strategy: str, **trainer: Any) -> dict[str, Any]:
    """EGPO, whose second half step starts from restored weights; prompts of uneven lengths."""
    policy = part("CausalLMPolicy", model=str(tiny_folder("llama")), lora=lora, max_new_tokens=8)
    config = configuration(
        algorithm=part("EGPO", eta=0.3),
        policy=policy,
        oracle=part("RuleOracle", function="nlhf_zoo.oracles.rules.shorter_wins"),
        rollout=part("Sample", num_responses=2, num_opponents=2),
        realisation=part("GradientSteps"),
        optimizer=part("torch.optim.AdamW", lr=0.01),
    )
    config["data"] = part("TextPrompts", path="prompts.jsonl", batch_size=1)
    config["trainer"] |= {"devices": 2, "strategy": strategy, "gradient_clip_val": 1.0} | trainer
    config["trainer"]["callbacks"] = [
        part("Budget", rounds=3), part("GameCheckpoint", every_n_train_steps=1)
    ]  # fmt: skip
    return config


def prepare(folder: Path, config: dict[str, Any]) -> None:
    write(folder, config)
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "{t}"}}\n' for t in TEXTS))


def ranks(folder: Path, config: dict[str, Any], *args: str, **options: Any) -> list[Run]:
    prepare(folder, config)
    fit = "fit", "--config", "game.yaml"
    return nlhf_ranks(config["trainer"]["devices"], *fit, *args, folder=folder, **options)


def play(folder: Path, config: dict[str, Any], *args: str) -> dict[str, Any]:
    runs = ranks(folder, config, *args)
    assert all(run.code == 0 for run in runs), "\n".join(run.err for run in runs)
    return load(folder)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """To the bit, but for the time that asking took."""
    for key in ("state_dict", "optimizer_states"):
        assert differences(one[key], other[key], key) == []
    for key in ("progress", "versions", "snapshot", "products", "rollout"):
        assert differences(one["online_game"][key], other["online_game"][key], key) == []


def assert_near(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], tensor, rtol=0, atol=1e-4)
    assert one["online_game"]["progress"] == other["online_game"]["progress"]
    snapshots = [run["online_game"]["snapshot"]["policy"] for run in (one, other)]
    assert len({tuple((n, t.shape) for n, t in each.items()) for each in snapshots}) == 1


@EACH_WAY
def test_it_is_the_game_of_ddp_and_goes_on_anywhere(lora: dict[str, Any] | None, tmp_path: Path):
    ddp = play(tmp_path / "ddp", game(lora, "ddp"))
    fsdp2 = play(tmp_path / "fsdp2", game(lora, "fsdp2"))
    if lora:
        assert_same(ddp, fsdp2)
    assert_near(ddp, fsdp2)
    # Stopped within a round, and within a half step's way back.
    stopped = play(tmp_path / "stopped", game(lora, "fsdp2"), "--trainer.max_steps", "3")
    assert stopped["online_game"]["progress"]["step"] == 1
    for name in ("ddp", "four", "one"):
        shutil.copytree(tmp_path / "stopped", tmp_path / f"resumed by {name}")
    assert_same(fsdp2, play(tmp_path / "stopped", game(lora, "fsdp2"), *LAST))
    by_ddp = play(tmp_path / "resumed by ddp", game(lora, "ddp"), *LAST)
    if lora:
        assert_same(fsdp2, by_ddp)
    assert_near(fsdp2, by_ddp)
    for name, strategy, devices in (("four", "fsdp2", 4), ("one", "auto", 1)):
        config = game(lora, strategy, devices=devices)
        progress = play(tmp_path / f"resumed by {name}", config, *LAST)["online_game"]["progress"]
        assert progress["round"] == 3
        # Asked so far by two, and from then on by as many as there are: 4 questions a step.
        assert progress["queries"] == 4 * (2 * 3 + devices * 3)
    out = nlhf("export", "--ckpt", str(CKPT), "--output", "out", folder=tmp_path / "stopped")
    assert out.code == 0, out.err


def killed(at: int) -> None:
    """Plant SIGKILL in the training step of this number."""
    from nlhf_zoo.game.online_game import OnlineGame

    original = OnlineGame.improve

    def improve(self: OnlineGame, *args: Any, **kwargs: Any) -> Any:
        if self.progress.batches == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    OnlineGame.improve = improve  # type: ignore[method-assign]


@EACH_WAY
def test_a_run_that_is_killed_resumes(lora: dict[str, Any] | None, tmp_path: Path):
    whole = play(tmp_path / "whole", game(lora, "fsdp2"))
    runs = ranks(tmp_path / "killed", game(lora, "fsdp2"), before=partial(killed, 4))
    assert [run.code for run in runs] == [-9, -9]
    assert_same(whole, play(tmp_path / "killed", game(lora, "fsdp2"), *LAST))


def test_a_held_rollout_goes_on(tmp_path: Path):
    """Stopped inside a rollout that serves several steps: none is drawn or asked anew."""
    config = game(None, "fsdp2")
    config["model"]["init_args"]["rollout"] = HELD
    whole = play(tmp_path / "whole", config)
    stopped = play(tmp_path / "stopped", config, "--trainer.max_steps", "3")
    assert stopped["online_game"]["progress"]["epoch"] == 1
    assert_same(whole, play(tmp_path / "stopped", config, *LAST))


@EACH_WAY
def test_four_processes_accumulate_and_compute_again(lora: dict[str, Any] | None, tmp_path: Path):
    found = []
    for strategy in ("ddp", "fsdp2"):
        config = game(lora, strategy, devices=4, accumulate_grad_batches=2)
        config["model"]["init_args"]["policy"]["init_args"]["gradient_checkpointing"] = True
        found.append(play(tmp_path / strategy, config))
    assert_near(*found)


def test_layer_by_layer(tmp_path: Path):
    """Processes keep in step while they draw, and draw the same."""
    together = play(tmp_path / "together", game({"r": 4}, "fsdp2"))
    assert_near(together, play(tmp_path / "layerwise", game({"r": 4}, "fsdp2_layerwise")))
    config = game(None, "fsdp2_layerwise")
    config["model"]["init_args"]["algorithm"] = part("NashMD")
    runs = ranks(tmp_path / "copies", config)
    assert all(run.code == 2 for run in runs)
    assert "draws from no mixture of players that are whole models" in runs[0].err


def test_processes_of_their_own(tmp_path: Path):
    """Started by Lightning's launcher."""
    fork = play(tmp_path / "fork", game({"r": 4}, "fsdp2"))
    prepare(tmp_path / "own", game({"r": 4}, "fsdp2"))
    done = subprocess.run(
        [sys.executable, "-m", "nlhf_zoo", "fit", "--config", "game.yaml"], cwd=tmp_path / "own",
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same(fork, load(tmp_path / "own"))
    held_out = "--data.num_validation", "2"
    validated = subprocess.run(
        [sys.executable, "-m", "nlhf_zoo", "validate", "--config", "game.yaml", *held_out, *LAST],
        cwd=tmp_path / "own", env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=280,
        capture_output=True, text=True,
    )  # fmt: skip
    assert validated.returncode == 0, validated.stderr
