"""Where one process of several fails, its sentence is all that is said, and the run ends by it."""

import copy
import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs
from paths import ROOT

from nlhf_zoo.cli.processes import code_for
from nlhf_zoo.game import launchers

PLANT = """
import os
import signal
import lightning as L
from nlhf_zoo.errors import UserError


class Fails(L.Callback):
    def __init__(self, process: int, killed: bool = False) -> None:
        self.process, self.killed = process, killed

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_rank == self.process and trainer.global_step == 3:
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError(f"process {self.process} met what it cannot read")
"""


FAILED = (
    "nlhf: error: process {0} of 2 failed in the training step (training step 4): process {0} met "
    "what it cannot read"
)
DIED = (
    "nlhf: error: no sign for 6 seconds of process 1 of 2, last seen in the training step "
    "(training step 4): it was stopped or killed"
)


def configuration(folder: Path, strategy: str, **failure: Any) -> None:
    config = copy.deepcopy(runs.CASES["sampled-nash_mp"])
    config["trainer"] |= {"devices": 2, "strategy": strategy}
    config["trainer"] |= {"enable_progress_bar": False}  # which is shown where it is slow
    config["trainer"]["callbacks"] += [
        runs.part("HangWatch", silence=20),
        runs.part("planted.Fails", **failure),
    ]
    config["data"] = runs.part("TablePrompts", batch_size=2)
    runs.write(folder, config)
    (folder / "planted.py").write_text(PLANT)


@pytest.mark.slow  # four starts of the whole command
@pytest.mark.parametrize("process", [0, 1])
def test_one_sentence_is_said(process: int, tmp_path: Path):
    """The other one added a traceback of gloo's, and the exit code was its."""
    configuration(tmp_path, "ddp", process=process)
    command = [sys.executable, "-m", "nlhf_zoo", "fit", "--config", "game.yaml"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2, run.stderr
    (said,) = [line for line in run.stderr.splitlines() if line.strip()]
    assert said == FAILED.format(process)


def importable(folder: Path) -> None:
    sys.path.insert(0, str(folder))


FAILURES = [
    pytest.param(0, False, FAILED.format(0), marks=pytest.mark.slow),
    (1, False, FAILED.format(1)),
    pytest.param(1, True, DIED, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("process", "killed", "said"), FAILURES)
def test_so_it_is_with_forks(process: int, killed: bool, said: str, tmp_path: Path):
    """Where two had ended, either of them was reported; one that was killed was unexpected."""
    configuration(tmp_path, "ddp_fork", process=process, killed=killed)
    run = runs.fit(tmp_path, before=functools.partial(importable, tmp_path))
    assert run.code == 2, run.err
    (line,) = [line for line in run.err.splitlines() if line.strip()]
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("child", "code", "says"), [(2, 2, False), (143, 143, False), (-9, 2, True)]
)
def test_the_first_process_ends_as_another_one_did(child, code, says, monkeypatch, capsys):
    """Lightning's thread killed it, so that the exit code of the run was that of a kill."""
    monkeypatch.setattr(launchers, "_PATIENCE", 0)
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    signals: list[int] = []
    children = [SimpleNamespace(returncode=c, send_signal=signals.append) for c in (0, child)]
    trainer = SimpleNamespace(callbacks=[], world_size=3)
    observer = SimpleNamespace(_child_processes=children)
    launchers.end_as_child(observer, 1, functools.partial(code_for, trainer))
    assert ends == [code]
    assert len(signals) == len(children)
    assert ("process 2 of 3 has died (exit code -9)" in capsys.readouterr().err) is says


def test_lightnings_thread_is_told_so():
    """By the name of a method that Lightning 2.6.6 keeps private."""
    import lightning as L
    from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    launchers.end_as_the_first_to_fail(trainer, lambda error: error, code_for)  # nothing calls it
    launcher, found = trainer.strategy.launcher, []
    launcher._call_children_scripts = lambda: None
    child = SimpleNamespace(poll=lambda: None, returncode=5)
    observer = _ChildProcessObserver(main_pid=0, child_processes=[child], sleep_period=1000)
    observer.start()
    launcher.launch(lambda: found.append(observer._terminate_all))
    assert found[0].func is launchers.end_as_child
    assert found[0].args == (observer, 1, code_for)
