"""A run that is killed and resumed gives what the uninterrupted one gives, bit for bit.

SIGKILL comes at points of our choosing: each phase of a round, and each moment of the writing of a
checkpoint.
"""

import copy
import functools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
import yaml
from forked import KILLED
from paths import ROOT
from slow import half_of, slow_unless

# Where a run is killed, in the order in which a training step passes.
POINTS = ("forward", "backward", "optimizer", "plan", "metrics", "half", "written", "saved")
REUSED_POINTS = (*POINTS, "part", "drawn")  # a part is judged, a rollout is whole
CLOSED_POINTS = ("forward", "metrics", "half", "written", "saved")


def kill_at(point: str, batches: int) -> None:
    """Kill this process at a point of the training step that ``Progress.batches`` counts so."""
    import fsspec.implementations.local
    import lightning as L

    from nlhf_zoo.callbacks import ExactMetrics, GameCheckpoint
    from nlhf_zoo.game.online_game import OnlineGame
    from nlhf_zoo.game.playing import Recording

    game: list[OnlineGame] = []
    kill = functools.partial(os.kill, os.getpid(), signal.SIGKILL)

    def due() -> bool:
        return game[0].progress.batches >= batches

    def patch(owner: Any, name: str, when: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(self, OnlineGame) and not game:
                game.append(self)
            if when == "before" and due():
                kill()
            result = original(self, *args, **kwargs)
            if when == "after" and due():
                kill()
            return result

        setattr(owner, name, patched)

    def half(source: str, target: str) -> None:
        """What a move to another file system is when it is interrupted."""
        if due():
            content = Path(source).read_bytes()
            Path(target).write_bytes(content[: len(content) // 2])
            kill()
        shutil.copy(source, target)

    places: dict[str, tuple[type, str, str]] = {
        "forward": (OnlineGame, "training_step", "before"),
        "backward": (OnlineGame, "on_before_optimizer_step", "before"),
        "optimizer": (L.LightningModule, "optimizer_step", "after"),
        "plan": (OnlineGame, "optimizer_step", "after"),
        "part": (Recording, "judge", "after"),
        "drawn": (OnlineGame, "play_and_judge", "after"),
        "metrics": (ExactMetrics, "on_train_batch_end", "after"),
        "written": (L.Trainer, "save_checkpoint", "after"),
        "saved": (GameCheckpoint, "on_train_batch_end", "after"),
    }
    patch(OnlineGame, "training_step", "never")  # which finds the game
    if point == "half":
        fsspec.implementations.local.shutil = type("Shutil", (), {"move": staticmethod(half)})
    else:
        patch(*places[point])


# Every kind of state, and all points together; all cases at all points are below, and slow, as one
# of these whose state and points others have.
KILLS = {
    "closed-moving_magnet": ("forward", "half"),
    "closed-adaptive": ("metrics", "saved"),
    "sampled-nash_mp": ("backward", "plan"),
    "sampled-egpo": ("optimizer", "half"),
    "enumerated-optimistic": ("saved", "written"),
    "reused-egpo": ("part", "backward", "drawn"),
    "reused-ahead": ("part", "optimizer"),
}
SLOW = "sampled-egpo"


def test_runs_are_killed_at_every_point():
    by_default = [points for name, points in KILLS.items() if name != SLOW]
    assert {point for points in by_default for point in points} == {*REUSED_POINTS}


@slow_unless("name", lambda name: name != SLOW, KILLS)
def test_killed_and_resumed_is_uninterrupted(name: str, tmp_path: Path):
    steps = runs.whole_run(tmp_path / "whole", runs.CASES[name])
    if name in runs.REUSED:
        steps //= 2  # behind which there are rollouts still to be drawn
    chosen = KILLS[name]
    steps_at = sorted(random.Random(name).sample(range(3, steps), len(chosen)))
    killed = tmp_path / "killed"
    runs.write(killed, runs.CASES[name])
    for i, (point, at) in enumerate(zip(chosen, steps_at, strict=True)):
        resume = runs.LAST if i else ()
        run = runs.fit(killed, *resume, before=functools.partial(kill_at, point, at))
        assert run.code == KILLED, (point, run.err)
    run = runs.fit(killed, *runs.LAST)
    assert run.code == 0, run.err
    runs.assert_same_run(tmp_path / "whole", killed)


@pytest.mark.slow
@pytest.mark.parametrize("name", runs.CASES)
def test_killed_at_every_point(name: str, tmp_path: Path):
    steps = runs.whole_run(tmp_path / "whole", runs.CASES[name])
    points = CLOSED_POINTS if name.startswith("closed") else POINTS
    points = REUSED_POINTS if name in runs.REUSED else points
    for point in points:
        killed = tmp_path / point
        runs.write(killed, runs.CASES[name])
        last = steps // 2 if point in ("part", "drawn") else steps  # then nothing is drawn any more
        for at in range(3, last, 1 + steps // 8):
            begun = (killed / runs.RUN / "checkpoints/last.ckpt").is_file()
            resume = runs.LAST if begun else ()
            run = runs.fit(killed, *resume, before=functools.partial(kill_at, point, at))
            assert run.code == KILLED, (point, at, run.err)
        assert runs.fit(killed, *runs.LAST).code == 0
        runs.assert_same_run(tmp_path / "whole", killed)


@pytest.mark.slow
def test_a_process_of_its_own_killed_at_a_random_moment(tmp_path: Path):
    config = copy.deepcopy(runs.CASES["sampled-egpo"])
    config["trainer"]["callbacks"][1] = runs.part("Budget", rounds=10**6)
    killed = tmp_path / "killed"
    runs.write(killed, config)
    checkpoint = killed / runs.RUN / "checkpoints/last.ckpt"
    command = [sys.executable, "-m", "nlhf_zoo", "fit", "--config", "game.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, cwd=killed, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            for _ in range(4000):
                if checkpoint.is_file() or process.poll() is not None:
                    break
                time.sleep(0.05)
            time.sleep(random.Random(0).uniform(0.2, 0.6))
        finally:
            process.kill()
    assert process.returncode == KILLED, (tmp_path / "log").read_text()
    rounds = runs.load(killed)["online_game"]["progress"]["round"] + 5
    config["trainer"]["callbacks"][1] = runs.part("Budget", rounds=rounds)
    for folder in (killed, tmp_path / "whole"):
        runs.write(folder, config)
    assert runs.fit(killed, *runs.LAST).code == 0
    assert runs.fit(tmp_path / "whole").code == 0
    assert runs.load(killed)["online_game"]["progress"]["round"] == rounds
    runs.assert_same_run(tmp_path / "whole", killed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has spent its budget; to be copied, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    runs.whole_run(folder, runs.CASES["sampled-nash_mp"])
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def change(folder: Path, **parts: Any) -> None:
    """Change sections of a run's configuration."""
    runs.write(folder, yaml.safe_load((folder / "game.yaml").read_text()) | parts)


@pytest.mark.parametrize("interval", [pytest.param(1, marks=pytest.mark.slow), 100])
def test_a_raised_budget_goes_on(interval: int, finished: Path, tmp_path: Path):
    config = yaml.safe_load((finished / "game.yaml").read_text())
    callbacks = config["trainer"]["callbacks"]
    callbacks[2] = runs.part("GameCheckpoint", every_n_train_steps=interval)
    callbacks[1] = runs.part("Budget", rounds=4)
    runs.write(tmp_path, config)
    assert runs.fit(tmp_path).code == 0
    callbacks[1] = runs.part("Budget", rounds=runs.ROUNDS)
    runs.write(tmp_path, config)
    assert runs.fit(tmp_path, *runs.LAST).code == 0
    runs.assert_same_game(tmp_path, finished, logs=False)


def test_a_finished_run_plays_no_more(finished: Path, run: Path):
    assert runs.fit(run, *runs.LAST).code == 0
    runs.assert_same_run(finished, run)
    assert [path.name for path in (run / "runs/game").iterdir()] == ["version_0"]
    config = yaml.safe_load((run / runs.RUN / "config.yaml").read_text())
    # config.yaml starts such a run afresh: it neither resumes nor writes into this one's folder.
    assert config["ckpt_path"] is None
    assert config["trainer"]["logger"]["init_args"]["version"] is None


def test_a_checkpoint_by_its_file_is_resumed_in_place(finished: Path, run: Path):
    assert runs.fit(run, "--ckpt_path", str(runs.RUN / "checkpoints/last.ckpt")).code == 0
    runs.assert_same_run(finished, run)


def test_last_is_that_of_the_last_run(run: Path):
    shutil.copytree(run / runs.RUN, run / "runs/game/version_10")
    shutil.copytree(run / runs.RUN, run / "runs/game/version_9")
    (run / "runs/game/version_11").mkdir()  # a run without a checkpoint
    before = {p: p.stat().st_mtime_ns for p in run.glob("runs/game/*/config.yaml")}
    assert runs.fit(run, *runs.LAST).code == 0
    changed = [p.parent.name for p, t in before.items() if p.stat().st_mtime_ns != t]
    assert changed == ["version_10"]


# An option, its new value, and what is said.
CHANGES = {
    "model.algorithm.eta": ("0.3", r"run had model\S*\.eta = None, the .* has 0\.3: resume"),
    "model.algorithm": ("EGPO", r"algorithm\.class_path = nlhf_zoo\S*NashMP, .*EGPO"),
    "model.beta": ("0.2", r"run had model\S*\.beta = 0\.1, the configuration has 0\.2"),
    "data.shuffle": ("true", r"run had data\S*\.shuffle = False, .* has True"),
    "seed_everything": ("4", r"run had seed_everything = 3, the configuration has 4"),
}


@half_of(
    "option, checkpoint",
    {option: option for option in CHANGES},
    {"last": "last", "file": str(runs.RUN / "checkpoints/last.ckpt")},
)
def test_another_configuration_is_refused(option: str, checkpoint: str, run: Path):
    value, sentence = CHANGES[option]
    done = runs.fit(run, f"--{option}", value, "--ckpt_path", checkpoint)
    assert done.code == 2
    assert re.search(sentence, done.err)


def test_last_without_a_checkpoint_is_refused(tmp_path: Path):
    runs.write(tmp_path, runs.CASES["closed-egpo"])
    done = runs.fit(tmp_path, *runs.LAST)
    assert done.code == 2
    assert "no run in runs/game has a checkpoint: leave it out to start afresh" in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_half_a_checkpoint_is_refused(kept: float, run: Path):
    path = run / runs.RUN / "checkpoints/last.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    done = runs.fit(run, *runs.LAST)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "last.ckpt is no checkpoint, or not as it was written" in done.err


def test_a_checkpoint_of_another_size_is_refused(run: Path):
    shutil.copy(
        run / runs.RUN / "checkpoints/last.ckpt", run / "mine.ckpt"
    )  # nothing beside it tells
    done = runs.fit(
        run, "--model.oracle.init_args.oracle.num_actions", "5", "--ckpt_path", "mine.ckpt"
    )
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "does not fit the model" in done.err


def test_a_checkpoint_does_not_replace_the_configuration(run: Path):
    """LightningCLI alone takes model arguments from the file: https://github.com/Lightning-AI/pytorch-lightning/pull/21455."""
    checkpoint = torch.load(run / runs.RUN / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"] = {"beta": 0.9}
    torch.save(checkpoint, run / runs.RUN / "checkpoints/mine.ckpt")
    done = runs.fit(run, "--ckpt_path", str(runs.RUN / "checkpoints/mine.ckpt"))
    assert done.code == 0, done.err
    config = yaml.safe_load((run / runs.RUN / "config.yaml").read_text())
    assert config["model"]["init_args"]["beta"] == 0.1
