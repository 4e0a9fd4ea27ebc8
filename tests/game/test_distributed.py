"""Two processes of the CPU (gloo) play the game that one plays."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Run
from paths import ROOT
from runs import LANGUAGE, LAST, ROUNDS, RUN, configuration, fit, load, part, write
from slow import slow_unless
from torch import Tensor

from nlhf_zoo.callbacks import read_history

STEPS = {
    "realisation": part("GradientSteps"),
    "optimizer": part("torch.optim.SGD", lr=1.0),
    "oracle": part("UniformRandom", num_games=4, num_actions=3),
}
# Five games in shares of two and three; about one of the two there is no answer.
UNEVEN = STEPS | {
    "oracle": part(
        "zoo.Silent", oracle=part("UniformRandom", num_games=5, num_actions=3), prompts=[1]
    )
}
ALGORITHMS = {
    "egpo": part("EGPO"),
    "moving_magnet": part("MovingMagnet", inner=part("NashMP", inner_steps=2, kappa=0.5), every=2),
    "online_dpo": part("OnlineDPO"),
    "optimistic_mirror_descent": part("OptimisticMirrorDescent"),
}


def play(folder: Path, processes: int, config: dict[str, Any], *args: str, **kwargs: Any) -> Run:
    """Play in processes that are forks of one."""
    config["trainer"] |= {"devices": processes}
    if processes > 1:
        config["trainer"]["strategy"] = "ddp_fork"
    write(folder, config)
    run = fit(folder, *args, **kwargs)
    assert run.code == 0, run.err
    return run


def assert_same_game(one: dict[str, Any], other: dict[str, Any], atol: float = 0) -> None:
    """Two checkpoints count the same and hold the same weights, to the bit unless ``atol`` is."""
    for key, tensor in one["state_dict"].items():
        found = other["state_dict"][key]
        torch.testing.assert_close(
            found, tensor, rtol=0, atol=atol, msg=lambda text, key=key: f"{key}: {text}"
        )
    # Batches are each process's own; what was asked is counted for both together.
    assert other["online_game"]["progress"] == one["online_game"]["progress"]


QUICK = ("moving_magnet", "online_dpo")  # of all kinds of players, and none; the others are slow


@slow_unless("name", lambda name: name in QUICK, ALGORITHMS)
def test_enumerated_gradients_are_those_of_one_process(name: str, tmp_path: Path):
    """SGD, so that a gradient of another size shows."""
    for number in (1, 2):
        config = configuration(algorithm=ALGORITHMS[name], **UNEVEN)
        play(tmp_path / str(number), number, config)
    one, two = (load(tmp_path / n) for n in "12")
    # A process asks again for its own prompts alone where one of them had no answer.
    asked = [game["online_game"]["progress"].pop("queries") for game in (one, two)]
    assert 0 < asked[1] <= asked[0]
    assert_same_game(one, two, atol=1e-9)
    state = one["state_dict"]
    moved = state["policy.networks.policy.logits"].log_softmax(-1) - state["policy.log_reference"]
    assert (moved.abs().amax(-1) > 0.01).tolist() == [True, False, True, True, True]
    assert one["online_game"]["progress"]["unjudged"] > 0
    # One of them writes, and what it writes is about the whole game.
    histories = [read_history(tmp_path / n / RUN) for n in "12"]
    for figure, values in histories[0].items():
        assert len(values) == ROUNDS + 1
        np.testing.assert_allclose(histories[1][figure], values, 0, 1e-9, equal_nan=False)
    assert [path.name for path in (tmp_path / "2/runs/game").iterdir()] == ["version_0"]
    assert len(list((tmp_path / "2" / RUN).glob("events*"))) == 1


def record(folder: Path) -> None:
    """Keep what each process draws, in the order of its steps."""
    from nlhf_zoo.game.online_game import OnlineGame
    from nlhf_zoo.policies import TabularPolicy

    original, play = TabularPolicy.sample, OnlineGame.training_step
    drawn: list[Tensor] = []

    def sample(self: TabularPolicy, *args: Any, **kwargs: Any) -> Any:
        responses = original(self, *args, **kwargs)
        drawn.append(responses.actions)
        return responses

    def step(self: OnlineGame, *args: Any, **kwargs: Any) -> Any:
        loss = play(self, *args, **kwargs)
        torch.save(drawn, folder / f"rank{self.global_rank}.pt")
        return loss

    TabularPolicy.sample, OnlineGame.training_step = sample, step


def sampled(folder: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    oracle = part("BernoulliLabels", oracle=STEPS["oracle"])
    rollout = part("Sample", num_responses=6, num_opponents=3)
    parts = STEPS | {"oracle": oracle, "rollout": rollout}
    config = configuration(algorithm=ALGORITHMS["egpo"], **parts)
    config["data"] = part("TablePrompts", batch_size=4)  # all prompts in each process
    config["trainer"]["callbacks"][1] = part("Budget", rounds=rounds)
    return config


def test_samples_differ_between_processes(tmp_path: Path):
    play(tmp_path, 2, sampled(tmp_path), before=functools.partial(record, tmp_path))
    draws = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert len(draws[0]) == len(draws[1]) == 2 * 2 * ROUNDS  # responses and opponents, two steps
    # 24 or 12 draws of 3 actions agree by chance less often than once in 10^5.
    assert not any(torch.equal(one, other) for one, other in zip(*draws, strict=True))
    # Neither does a process repeat itself.
    assert len({tuple(d.flatten().tolist()) for d in draws[0]}) == len(draws[0])
    progress = load(tmp_path)["online_game"]["progress"]
    assert progress["queries_per_prompt"] == 2 * ROUNDS * 6 * 3
    assert progress["queries"] == 2 * 4 * progress["queries_per_prompt"]


@pytest.mark.slow  # a run with held rollouts is resumed below, and draws the others anew
def test_two_processes_resume(tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    play(whole, 2, sampled(tmp_path))
    play(parts, 2, sampled(tmp_path, rounds=4))
    play(parts, 2, sampled(tmp_path), *LAST)
    assert_same_game(load(whole), load(parts))
    assert (whole / RUN / "history.bin").read_bytes() == (parts / RUN / "history.bin").read_bytes()


def language(rounds: int, **parts: Any) -> dict[str, Any]:
    """EGPO with a LoRA language model over words of two letters; two prompts."""
    config = configuration(algorithm=ALGORITHMS["egpo"], **(STEPS | LANGUAGE | parts))
    config["trainer"]["callbacks"][1] = part("Budget", rounds=rounds)
    return config


def test_language_model_of_two_processes_is_that_of_one(tmp_path: Path):
    """Enumerated; SGD, so that a gradient of twice the size would show.

    Where two play, in chunks of one prompt: a parameter's gradient is that of them all.
    """
    parts = {
        "rollout": part("Enumerate"),
        "oracle": part("SmallLanguage", num_letters=4, length=2),
        "optimizer": part("torch.optim.SGD", lr=0.1),
        "lr_scheduler": None,
    }
    for processes in (1, 2):
        config = language(6, **parts)
        if processes == 2:
            config["model"]["init_args"]["policy"]["init_args"]["max_tokens_per_chunk"] = 1
        play(tmp_path / str(processes), processes, config)
    one, two = (load(tmp_path / n) for n in "12")
    assert_same_game(one, two, atol=1e-5)
    state = one["state_dict"]
    assert max(state[key].abs().max() for key in state if "lora_B.policy" in key) > 0.01  # from 0


@pytest.mark.slow
def test_language_model_of_two_processes_resumes(tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, rounds, resume in ((whole, 5, ()), (parts, 2, ()), (parts, 5, LAST)):
        play(folder, 2, language(rounds), *resume)
    one, other = load(whole), load(parts)
    assert_same_game(one, other)
    # Both processes draw: 4 responses and 2 opponents of 2 tokens, in 2 steps a round.
    assert one["online_game"]["progress"]["tokens"] == 2 * 5 * 2 * (4 + 2) * 2


@pytest.mark.slow
def test_two_processes_of_their_own(tmp_path: Path):
    config = configuration(algorithm=ALGORITHMS["egpo"], **STEPS)
    play(tmp_path / "one", 1, config)
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    write(tmp_path / "two", config)
    done = subprocess.run(
        [sys.executable, "-m", "nlhf_zoo", "fit", "--config", "game.yaml"], cwd=tmp_path / "two",
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same_game(load(tmp_path / "one"), load(tmp_path / "two"), atol=1e-6)


def test_a_held_rollout_is_each_processes_own_and_resumed(tmp_path: Path):
    """Stopped within a proximal step: what each has drawn is read again, and none asks anew."""
    rollout = part("Sample", num_responses=4, num_opponents=2, epochs=3)
    config = configuration(algorithm=ALGORITHMS["egpo"], **(STEPS | {"rollout": rollout}))
    config["trainer"]["callbacks"][1] = part("Budget", rounds=2)
    play(tmp_path / "whole", 2, config)
    play(tmp_path / "stopped", 2, config, "--trainer.max_steps", "2")
    assert load(tmp_path / "stopped")["online_game"]["progress"]["epoch"] == 2
    run = play(tmp_path / "stopped", 2, config, *LAST)
    assert "drawn and judged anew" not in run.err
    assert_same_game(*(load(tmp_path / name) for name in ("whole", "stopped")))
    # Where one process has lost its own, all draw again, and go on together.
    play(tmp_path / "lost", 2, config, "--trainer.max_steps", "2")
    for file in (tmp_path / "lost").rglob("rank1-*.safetensors"):
        file.unlink()
    run = play(tmp_path / "lost", 2, config, *LAST)
    assert "drawn and judged anew" in run.err
    assert load(tmp_path / "lost")["online_game"]["progress"]["round"] == 2
