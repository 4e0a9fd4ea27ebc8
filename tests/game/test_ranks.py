"""Where one process of several fails, its sentence is all that is said, and the run ends by it."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from paths import ROOT

PLANT = """
import lightning as L
from nlhf_zoo.errors import UserError


class Fails(L.Callback):
    def __init__(self, process: int) -> None:
        self.process = process

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_rank == self.process and trainer.global_step == 3:
            raise UserError(f"process {self.process} met what it cannot read")
"""


@pytest.mark.slow  # four starts of the whole command
@pytest.mark.parametrize("process", [0, 1])
def test_one_sentence_is_said(process: int, tmp_path: Path):
    """The other one added a traceback of gloo's, and the exit code was its."""
    config = copy.deepcopy(runs.CASES["sampled-nash_mp"])
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    config["trainer"]["callbacks"].append(runs.part("planted.Fails", process=process))
    config["data"] = runs.part("TablePrompts", batch_size=2)
    runs.write(tmp_path, config)
    (tmp_path / "planted.py").write_text(PLANT)
    command = [sys.executable, "-m", "nlhf_zoo", "fit", "--config", "game.yaml"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2, run.stderr
    said = f"nlhf: error: process {process} met what it cannot read"
    assert [line for line in run.stderr.splitlines() if line.strip()] == [said]
