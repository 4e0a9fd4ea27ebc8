"""One process that fails, dies, hangs or is stopped ends all of them, with its sentence.

    NLHF_TRIALS=20 .venv/bin/pytest -m slow tests/game/test_failures.py

Two processes are started apart from each other, as on two machines: neither can send the other a
signal. Each phase of a step is tried; the process that fails is the first one and the other in
turn.
"""

import copy
import os
import re
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import runs
from forked import Run

from nlhf_zoo.errors import UserError

TRIALS = int(os.environ.get("NLHF_TRIALS", "1"))
SECONDS, SILENCE = 10, 20  # of HangWatch
LONGEST = 60  # seconds until all have ended
STEP = 3  # the training step in which it happens
PHASES = ("draw", "judge", "score", "backward", "update")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def configuration(**trainer: Any) -> dict[str, Any]:
    config = copy.deepcopy(runs.CASES["sampled-nash_mp"])
    config["trainer"] |= {"enable_progress_bar": False, **trainer}
    config["trainer"]["callbacks"] = [
        runs.part("Budget", rounds=runs.ROUNDS),
        runs.part("GameCheckpoint", every_n_train_steps=1),
        runs.part("HangWatch", seconds=SECONDS, silence=SILENCE),
    ]
    config["data"] = runs.part("TablePrompts", batch_size=1)
    return config


def fail(how: str) -> None:
    """What happens to the process, and when."""
    Path("failed").write_text("")
    if how == "raises":
        raise UserError("this cannot be read")
    if how == "breaks":
        raise KeyError("nobody expected this")
    if how == "hangs":
        time.sleep(600)
    time.sleep(2)  # the first process keeps what it told: the others have it as of their last look
    os.kill(os.getpid(), {"dies": signal.SIGKILL, "stops": signal.SIGSTOP}[how])


def planted(how: str, phase: str, process: int, node: dict[str, str]) -> None:
    """Let one process fail in a phase of its third training step."""
    from nlhf_zoo.game.online_game import OnlineGame
    from nlhf_zoo.game.rollout import Sample
    from nlhf_zoo.oracles.tables.base import TableOracle

    os.environ.update(node)
    owner, name = {
        "draw": (Sample, "play"),
        "judge": (TableOracle, "forward"),
        "score": (OnlineGame, "improve"),
        "backward": (OnlineGame, "on_before_backward"),
        "update": (OnlineGame, "on_before_optimizer_step"),
    }[phase]
    original, begin = getattr(owner, name), OnlineGame.training_step
    steps = [0]

    def step(self: Any, *args: Any) -> Any:
        steps[0] += 1
        return begin(self, *args)

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        rank = int(os.environ.get("NODE_RANK", os.environ.get("LOCAL_RANK", "0")))
        if steps[0] != STEP or rank != process:
            return original(self, *args, **kwargs)
        if phase != "backward":
            return fail(how)
        return args[0].register_hook(lambda gradient: fail(how))

    OnlineGame.training_step = step
    setattr(owner, name, failing)


def as_two_machines(folder: Path, how: str, phase: str, process: int) -> tuple[list[Run], float]:
    """How both end, and the seconds from the failure until then."""
    runs.write(folder, configuration(devices=1, num_nodes=2, strategy="ddp"))
    port, found = str(free_port()), dict[int, Any]()
    ends: dict[int, float] = {}

    def play(node: int) -> None:
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(node)}
        before = partial(planted, how, phase, process, here)
        options = ("--config", str(folder / "game.yaml"), "--trainer.logger.save_dir", "../runs")
        stops = how == "stops" and node == process
        try:
            found[node] = runs.nlhf(
                "fit", *options, folder=folder / str(node), before=before,
                timeout=40 if stops else 200,
            )  # fmt: skip
        except TimeoutError as error:
            found[node] = error
        ends[node] = time.time()

    threads = [threading.Thread(target=play, args=(node,)) for node in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end = ends[1 - process] if how == "stops" else max(ends.values())
    failed = (folder / str(process) / "failed").stat().st_mtime
    return [found[node] for node in (0, 1)], end - failed


def place(phase: str) -> str:
    """How a sentence names it."""
    name = {"backward": "update, in backward", "update": "update, in the optimiser's step"}
    return rf"{name.get(phase, phase)} \(training step {STEP}(, [\w.]+:\d+)?"


@pytest.mark.slow
@pytest.mark.timeout(200 * TRIALS)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["raises", "dies", "hangs", "stops"])
def test_all_end_by_its_sentence(how: str, phase: str, tmp_path: Path):
    longest = 0.0
    for trial in range(TRIALS):
        process, folder = (trial + 1) % 2, tmp_path / str(trial)
        ended, took = as_two_machines(folder, how, phase, process)
        longest = max(longest, took)
        assert took < LONGEST
        if how == "stops":  # nobody can end it from the other machine
            assert isinstance(ended[process], TimeoutError)
        for node, run in enumerate(ended):
            if how in ("dies", "stops") and node == process:
                continue
            assert run.code == 2, (trial, node, ended)
            said = [line for line in run.err.splitlines() if line.strip()]
            assert len(said) == 1, (trial, node, run.err)
            assert re.search(f"process {process} of 2.* {place(phase)}", said[0]), said
        checkpoint = runs.load(folder)
        assert checkpoint["global_step"] == STEP - 1
        assert checkpoint["online_game"]["progress"]["batches"] == STEP - 1
        checkpoints = folder / runs.RUN / "checkpoints"
        # One of the step that not all have finished may be begun; it is nobody's.
        found = {path.name for path in checkpoints.iterdir()} - {"last.ckpt.part"}
        assert found == {"last.ckpt", "previous.ckpt"}
        # It goes on in one process; nothing of what was drawn in that step was kept.
        options = ("--trainer.num_nodes", "1", "--trainer.logger.save_dir", "../runs", *runs.LAST)
        run = runs.nlhf(
            "fit", "--config", str(folder / "game.yaml"), *options, folder=folder / "alone"
        )
        assert run.code == 0, run.err
        assert runs.load(folder)["online_game"]["progress"]["round"] == runs.ROUNDS
    print(f"{how} in {phase}: {TRIALS} trials, all ended within {longest:.0f} s")
