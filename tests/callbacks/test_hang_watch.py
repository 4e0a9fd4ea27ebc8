"""Of several processes one that hangs ends the run, by a sentence that names it and the phase."""

import copy
import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs
from paths import ROOT

from nlhf_zoo.callbacks import HangWatch, hang_watch
from nlhf_zoo.callbacks.notice_board import Verdict
from nlhf_zoo.callbacks.waiting import ENDED, UPDATE, Place, Waiting
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.micro_batches import StepTimer

SECONDS = 10  # a process may be waited for; those that hang do so for ten minutes

PLANT = """
import ctypes
import time
import lightning as L
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.oracles.tables.base import TableOracle


def hang(place):
    if place == "held":
        ctypes.PyDLL(None).sleep(600)  # and no thread of this process can run
    time.sleep(600)


class Hangs(L.Callback):
    def __init__(self, process: int, place: str) -> None:
        self.process, self.place, self.calls = process, place, 0

    def setup(self, trainer, module, stage) -> None:
        owner, name = {
            "drawn": (Sample, "play"),
            "asked": (TableOracle, "forward"),
            "held": (TableOracle, "forward"),
            "validated": (OnlineGame, "validation_step"),
            "saved": (type(trainer.strategy.checkpoint_io), "save_checkpoint"),
        }.get(self.place, (None, ""))
        if owner is not None and trainer.global_rank == self.process:
            original = getattr(owner, name)

            def planted(*args, **kwargs):
                self.calls += 1
                if self.calls == 3:
                    hang(self.place)
                return original(*args, **kwargs)

            setattr(owner, name, planted)

    def on_before_backward(self, trainer, module, loss) -> None:
        if self.place == "backward" and trainer.global_rank == self.process:
            loss.register_hook(lambda gradient: hang(self.place))
"""


def seen(waiting: Waiting, times: int, **places: Place) -> list[int]:
    """What hangs after so many seconds with processes at these places."""
    found: list[int] = []
    for _ in range(times):
        waiting.see({int(name[1:]): place for name, place in places.items()}, 1.0)
        found = waiting.hanging()
    return found


def test_who_is_behind_and_does_not_move_hangs():
    judging, counting = Place(4, 3, "judge", "a.py:1"), Place(4, 4, "counts", "b.py:2")
    waiting = Waiting(seconds=3)
    assert seen(waiting, 9, p0=judging, p1=judging) == []  # nobody waits
    assert seen(waiting, 3, p0=counting, p1=judging) == []
    assert seen(waiting, 1, p0=counting, p1=judging) == [1]
    assert "process 1 of 2 hangs, last seen in judge (training step 4, a.py:1)" in (
        waiting.sentence()
    )


def test_who_moves_does_not_hang():
    waiting = Waiting(seconds=3)
    for batch in range(9):
        behind = Place(batch, 0, "drawing")
        assert seen(waiting, 3, p0=Place(100, 0, "drawing"), p1=behind) == []
    # Another line of code is no move; another part is, though it has the same name.
    assert seen(waiting, 2, p0=Place(100, 0, ""), p1=Place(8, 0, "drawing", "a.py:2")) == [1]
    assert seen(waiting, 1, p0=Place(100, 0, ""), p1=Place(8, 1, "drawing", "a.py:2")) == []


def test_of_three_the_last_one_hangs():
    places = {"p0": Place(4, 4, ""), "p1": Place(5, 0, ""), "p2": Place(4, 3, "")}
    assert seen(Waiting(seconds=3), 4, **places) == [2]


def test_in_backward_all_wait_for_each_other():
    waiting, place = Waiting(seconds=3), Place(4, 6, UPDATE, "a.py:1")
    assert seen(waiting, 3, p0=place, p1=place) == []
    assert seen(waiting, 1, p0=place, p1=place) == [0, 1]
    assert waiting.sentence().startswith(
        "one of 2 processes hangs in update, in backward (training step 4): for "
        "3 seconds these have stood: process 0 at a.py:1, process 1 at a.py:1; if it needs longer"
    )
    assert seen(Waiting(seconds=3), 9, p0=place) == []  # alone


def test_who_has_begun_fewer_exchanges_hangs_in_backward():
    waiting, place = Waiting(seconds=3), Place(4, 6, UPDATE, "a.py:1", exchanges=8)
    assert seen(waiting, 4, p0=place, p1=place._replace(exchanges=7)) == [1]
    assert waiting.sentence().startswith("process 1 of 2 hangs, last seen in update, in backward")


def test_who_gives_no_sign_is_silent():
    waiting, place = Waiting(seconds=100, silence=3), Place(4, 3, "judge", "a.py:1")
    for beat in range(5):
        waiting.see({0: place._replace(beat=beat), 1: place}, 1.0)
    assert waiting.silent() == [1]
    assert waiting.sentence(0) == (
        "no sign for 3 seconds of process 1 of 2, last seen in judge (training step 4, a.py:1): it "
        "was stopped or killed, or its machine is not reached; process 0 is in judge (training "
        "step 4, a.py:1)"
    )
    # A sign is enough, and who has come to the end gives none.
    waiting.see({0: place._replace(beat=6), 1: place._replace(beat=1)}, 1.0)
    assert waiting.silent() == []
    for beat in range(5):
        waiting.see({0: place._replace(beat=beat), 1: place._replace(phase=ENDED)}, 1.0)
    assert waiting.silent() == waiting.hanging() == []


def test_the_first_process_is_silent_where_the_store_does_not_answer():
    waiting, place = Waiting(seconds=100, silence=3), Place(4, 3, "judge")
    waiting.see({0: place, 1: place}, 1.0)
    for _ in range(2):
        waiting.hear_nothing_of(0, 1.0)
    assert waiting.silent() == []
    waiting.hear_nothing_of(0, 1.0)
    assert waiting.silent() == [0]


def test_a_phase_that_fails_is_remembered():
    timer, heard = StepTimer(), list[str | None]()
    timer.on_phase = heard.append
    with pytest.raises(UserError), timer.phase("score"), timer.phase("judge"):
        raise UserError("no")
    assert timer.failed_in == "judge"
    assert heard == ["score", "judge"]  # nobody went on to another one


@pytest.mark.parametrize("name", ["seconds", "silence"])
@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_it_waits_for_some_seconds(seconds, name):
    with pytest.raises(UserError, match=f"{name} of HangWatch must be some seconds, above 0"):
        HangWatch(**{name: seconds})


def configuration(process: int, place: str, strategy: str) -> dict[str, Any]:
    config = copy.deepcopy(runs.CASES["sampled-nash_mp"])
    config["trainer"] |= {"devices": 2, "strategy": strategy, "logger": False}
    config["trainer"] |= {"enable_progress_bar": False}  # which is shown where it is slow
    config["trainer"] |= {"val_check_interval": 1, "check_val_every_n_epoch": None}
    config["trainer"]["callbacks"] = [
        runs.part("Budget", rounds=runs.ROUNDS),
        runs.part("GameCheckpoint", every_n_train_steps=1),
        runs.part("HangWatch", seconds=SECONDS),
        runs.part("planted.Hangs", process=process, place=place),
    ]
    config["data"] = runs.part("TablePrompts", batch_size=2)
    return config


def planted(folder: Path) -> None:
    sys.path.insert(0, str(folder))


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run(tmp_path: Path):
    (tmp_path / "planted.py").write_text(PLANT)
    runs.write(tmp_path, configuration(1, "asked", "ddp_fork"))
    run = runs.fit(tmp_path, before=functools.partial(planted, tmp_path))
    assert run.code == 2, run.err
    (said,) = run.err.strip().splitlines()
    assert said.startswith("nlhf: error: process 1 of 2 hangs, last seen in judge (training step")
    assert "planted.py" in said
    assert f"waited for it for {SECONDS} seconds" in said


PLACES = {
    (0, "drawn"): "process 0 of 2 hangs, last seen in draw",
    (1, "validated"): "process 1 of 2 hangs, last seen in validation",
    (0, "saved"): r"process 0 of 2 hangs, last seen in writing a checkpoint .*planted\.py",
    (1, "backward"): r"process 1 of 2 hangs, last seen in update, in backward .*planted\.py",
    (0, "held"): "process 0 of 2 hangs, last seen in judge",
}


@pytest.mark.slow  # starts of the whole command, in two processes each
@pytest.mark.parametrize(("process", "place"), PLACES)
def test_wherever_it_hangs(process: int, place: str, tmp_path: Path):
    (tmp_path / "planted.py").write_text(PLANT)
    runs.write(tmp_path, configuration(process, place, "ddp"))
    command = [sys.executable, "-m", "nlhf_zoo", "fit", "--config", "game.yaml"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    # One that cannot end itself is killed; the code of a run is the first process's.
    assert run.returncode == (-9 if place == "held" else 2), run.stderr
    (said,) = run.stderr.strip().splitlines()
    assert re.match(f"nlhf: error: .*{PLACES[process, place]}", said)


@pytest.mark.parametrize("by", [0, 2])
def test_who_ends_the_first_process_of_a_machine_says_what_that_one_has_met(
    by: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """It has an error of its own, and is held by something else before it says so."""
    ended: list[Any] = []
    monkeypatch.setattr(hang_watch, "parent_process", lambda _: os.getppid())
    monkeypatch.setattr(os, "kill", lambda *process_and_signal: ended.append(process_and_signal))
    monkeypatch.setattr(os, "_exit", ended.append)
    trainer: Any = SimpleNamespace(global_rank=1, local_rank=1, node_rank=0)
    board: Any = SimpleNamespace(interval=0.0, close=list)
    verdict = Verdict(by, 0, 2, f"process {by} of 3 failed in judge: ", "no answer")
    HangWatch()._leave(trainer, board, verdict)
    assert ended == [(os.getppid(), signal.SIGKILL), 2]
    said = "nlhf: error: process 0 of 3 failed in judge: no answer\n"
    assert capsys.readouterr().err == ("" if by else said)
