"""A comparison that is interrupted goes on by the same command, where each run stood."""

import copy
import csv
import functools
import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import KILLED, nlhf
from paths import CONFIGS
from runs import part

from nlhf_zoo.cli.compare.runs import RESULT
from nlhf_zoo.signals import ENDING

TERM, INT = ENDING
KILL = signal.SIGKILL


def end_at(run: int, signum: int) -> None:
    """Let a signal end the run of that number, in the middle of it."""
    signal.signal(INT, signal.default_int_handler)  # which a shell's background would ignore
    from nlhf_zoo.callbacks import ExactMetrics

    original, starts = ExactMetrics.on_train_start, [0]

    @functools.wraps(original)
    def patched(self: Any, *args: Any) -> None:
        original(self, *args)
        starts[0] += 1
        if starts[0] == run:
            os.kill(os.getpid(), signum)

    ExactMetrics.on_train_start = patched  # type: ignore[method-assign]


def kill_in(run: int, batches: int) -> None:
    """Keep every training step, and be killed in the run of that number behind some of them."""
    from nlhf_zoo.cli.compare import keeping

    keeping.EVERY = 0.0
    start, end = keeping.RunCheckpoint.on_train_start, keeping.RunCheckpoint.on_train_batch_end
    seen = [0, 0]

    @functools.wraps(start)
    def starting(self: Any, *args: Any) -> None:
        seen[:] = seen[0] + 1, 0
        start(self, *args)

    @functools.wraps(end)
    def ending(self: Any, *args: Any) -> None:
        end(self, *args)
        seen[1] += 1
        if seen == [run, batches]:
            os.kill(os.getpid(), KILL)

    keeping.RunCheckpoint.on_train_start = starting  # type: ignore[method-assign]
    keeping.RunCheckpoint.on_train_batch_end = ending  # type: ignore[method-assign]


def count_rounds() -> None:
    """Say at each run's end how many training steps were played in this process."""
    from nlhf_zoo.cli.compare import keeping

    end, seen = keeping.RunCheckpoint.on_train_batch_end, [0]

    @functools.wraps(end)
    def ending(self: Any, *args: Any) -> None:
        end(self, *args)
        seen[0] += 1
        print("played", seen[0])

    keeping.RunCheckpoint.on_train_batch_end = ending  # type: ignore[method-assign]


def compare(folder: Path, config: dict[str, Any], *args: str, **kwargs: Any) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "compare.yaml").write_text(yaml.safe_dump(config))
    return nlhf("compare", "--config", "compare.yaml", *args, folder=folder, **kwargs)


def results(folder: Path) -> list[Path]:
    return sorted(folder.rglob(RESULT))


def rows(folder: Path) -> list[dict[str, str]]:
    """The results, but for the time that they took."""
    with (folder / "out/results.csv").open() as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def swept() -> dict[str, Any]:
    """Six runs: one algorithm at one value, the other at two, from two seeds."""
    game = {
        "oracle": part("UniformRandom", num_games=3, num_actions=4),
        "reference": part("NormalReference"),
    }
    files = {name: str(CONFIGS / f"tabular/{name.lower()}.yaml") for name in ("EGPO", "SPPO")}
    algorithms: dict[str, dict[str, Any]] = {name: {"config": f} for name, f in files.items()}
    algorithms["EGPO"]["realisation"] = part("ClosedForm", rounds_per_step=1)
    algorithms["SPPO"]["sweep"] = {"algorithm.eta": [0.5, 0.1]}
    return {
        "output": "out", "budget": {"queries": 7}, "betas": [0.1], "seeds": [0, 1],
        "games": {"uniform": game}, "algorithms": algorithms,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, swept: dict[str, Any]) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert compare(folder, swept).code == 0
    return folder


@pytest.mark.parametrize(
    ("signum", "code"),
    [
        (KILL, KILLED),
        *(pytest.param(*end, marks=pytest.mark.slow) for end in [(TERM, 143), (INT, 130)]),
    ],
    ids=["kill", "term", "int"],
)
def test_it_goes_on_run_by_run(signum, code, whole, swept, tmp_path):
    run = compare(tmp_path, swept, before=functools.partial(end_at, 4, signum))
    assert run.code == code, run.err
    assert "Traceback" not in run.err
    if signum != KILL:
        assert run.sentence == f"nlhf: stopped by {signal.Signals(signum).name}"
    ended = results(tmp_path)
    assert len(ended) == 3
    before = [path.stat().st_mtime_ns for path in ended]
    run = compare(tmp_path, swept)
    assert run.code == 0, run.err
    assert "3 runs were played before and are kept" in run.err
    assert [path.stat().st_mtime_ns for path in ended] == before
    assert rows(tmp_path) == rows(whole)
    for kept in whole.rglob("history.bin"):
        assert (tmp_path / kept.relative_to(whole)).read_bytes() == kept.read_bytes()
    assert {path.parent.relative_to(tmp_path) for path in tmp_path.rglob("events*")} == {
        path.parent.relative_to(whole) for path in whole.rglob("events*")
    }


def test_a_run_goes_on_in_the_middle(whole, swept, tmp_path):
    """It began anew, and all its rounds were played again."""
    run = compare(tmp_path, swept, before=functools.partial(kill_in, 2, 2))
    assert run.code == KILLED, run.err
    (kept,) = tmp_path.rglob("last.ckpt")
    run = compare(tmp_path, swept, before=count_rounds)
    assert run.code == 0, run.err
    assert "1 runs were played before and are kept and 1 go on where they stood: the" in run.err
    steps = [int(number) for number in re.findall(r"^played (\d+)$", run.out, re.M)]
    assert len(steps) == 1 + 4  # one of three is left of this run, and four runs are of one
    assert rows(tmp_path) == rows(whole)
    for path in whole.rglob("history.bin"):
        assert (tmp_path / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert not kept.parent.exists()
    (tmp_path / "out/uniform/EGPO/seed_0/checkpoints").mkdir()
    assert compare(tmp_path, swept, "--overwrite").code == 0
    assert not [*tmp_path.rglob("checkpoints")]


@pytest.mark.slow
def test_in_several_processes_too(whole, swept, tmp_path):
    config = swept | {"processes": 2}
    assert compare(tmp_path, swept, before=functools.partial(end_at, 3, KILL)).code == KILLED
    run = compare(tmp_path, config)
    assert run.code == 0, run.err
    assert rows(tmp_path) == rows(whole)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "budget": lambda config: config["budget"].update(queries=9),
    "seeds": lambda config: config["seeds"].append(7),
    "entries": lambda config: config["games"]["uniform"]["oracle"]["init_args"].update(seed=5),
}


@pytest.mark.slow  # test_compare.py has an earlier comparison that is not destroyed
def test_another_comparison_is_left_alone(whole, swept, tmp_path):
    killed = compare(tmp_path, swept, before=functools.partial(end_at, 3, KILL))
    assert killed.code == KILLED
    ended = results(tmp_path)
    for what, change in CHANGES.items():
        config = copy.deepcopy(swept)
        change(config)
        run = compare(tmp_path, config)
        assert run.code == 2, run.err
        assert f"was interrupted and had another {what}: run it as it was" in run.err
        assert results(tmp_path) == ended
    what = tmp_path / "out/comparison.json"
    saved = what.read_text()
    what.write_text("{")
    assert "comparison.json is damaged" in compare(tmp_path, swept).err
    what.write_text(saved)
    ended[0].write_text('{"queries": 6')  # not as it was written: that run is played again
    assert compare(tmp_path, swept).code == 0
    assert rows(tmp_path) == rows(whole)
    run = compare(tmp_path, swept)
    assert run.code == 2
    assert "holds an earlier comparison (results.csv)" in run.err
    run = compare(tmp_path, swept, "--overwrite")
    assert run.code == 0, run.err
    assert "were played before" not in run.err


def limit_runs(size: int) -> None:
    """No file of a run may grow beyond so many bytes: what a full disk does, without one."""
    from nlhf_zoo.cli.compare import command

    original = command.begin

    def begin(*args: Any) -> int:
        ended = original(*args)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return ended

    command.begin = begin


def test_a_full_disk_ends_it_in_one_sentence(whole, swept, tmp_path):
    """It ended in a traceback, and had one of TensorBoard's thread above it."""
    run = compare(tmp_path, swept, before=functools.partial(limit_runs, 1000))
    assert run.code == 2
    assert "Traceback" not in run.err
    assert re.search(r"nlhf: error: uniform, EGPO, seed 0: out/\S+: File too large$", run.sentence)
    assert compare(tmp_path, swept).code == 0
    assert rows(tmp_path) == rows(whole)
