"""Where the oracle stops, the run ends with its last words and a checkpoint, and can go on."""

import copy
import functools
import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import runs
from judge_server import JudgeServer
from judge_server_oracles import patience_ends_in_an_outage
from rows import write as write_rows

from nlhf_zoo.errors import OracleStoppedError

WORDS = "the judge is out to lunch"


def stop_at(call: int, process: int = 0) -> None:
    """Let a process's table stop at a call; what is asked after that would be answered again."""
    from nlhf_zoo.oracles.tables.base import TableOracle

    original, calls = TableOracle.forward, [0]

    @functools.wraps(original)
    def forward(self: Any, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and process == int(os.environ.get("LOCAL_RANK", "0")):
            raise OracleStoppedError(WORDS)
        return original(self, *args)

    TableOracle.forward = forward  # type: ignore[method-assign]


def rarely(config: dict[str, Any]) -> None:
    """No checkpoints but those of a stop, and of the end."""
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"] == "GameCheckpoint":
            callback["init_args"]["every_n_train_steps"] = 1000


def stops(folder: Path, call: int, *args: str, process: int = 0) -> None:
    """Run until the table stops at a call: its words, without a traceback."""
    run = runs.fit(folder, *args, before=functools.partial(stop_at, call, process))
    assert run.code == 2
    of_several = rf"(process {process} of 2 failed in (judge|validation) \(training step \d+\): )?"
    assert re.fullmatch(f"nlhf: error: {of_several}{WORDS}", run.sentence) or (
        process and "oracle of another process" in run.sentence
    )
    assert "Traceback" not in run.err


def goes_on(folder: Path, whole: Path) -> None:
    """Resume, and end where the uninterrupted run has."""
    assert runs.fit(folder, *runs.LAST).code == 0
    runs.assert_same_game(whole, folder)


# Two calls a training step for the optimistic one: it stops between the two, when one label is
# drawn already. The one of EGPO accumulates two batches: it stops at the first and at the second.
@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("sampled-nash_mp", (1, 9)),
        pytest.param("sampled-optimistic_mirror_descent", (2, 7), marks=pytest.mark.slow),
        pytest.param("sampled-egpo", (6, 7), marks=pytest.mark.slow),
        pytest.param("language-nash_mp", (6,), marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_where_its_oracle_stopped(name: str, calls: tuple[int, ...], tmp_path: Path):
    config = copy.deepcopy(runs.CASES[name])
    runs.whole_run(tmp_path / "whole", config)
    rarely(config)
    for number, call in enumerate(calls):
        stopped = tmp_path / f"stopped{number}"
        runs.write(stopped, config)
        stops(stopped, call)
        goes_on(stopped, tmp_path / "whole")


@pytest.mark.slow  # one that stops once goes on above, at two places
def test_a_run_that_stops_again_and_again(tmp_path: Path):
    config = copy.deepcopy(runs.CASES["sampled-egpo"])
    runs.whole_run(tmp_path / "whole", config)
    stopped = tmp_path / "stopped"
    runs.write(stopped, config)
    for number in range(3):
        stops(stopped, 6 + number, *(runs.LAST if number else ()))
    goes_on(stopped, tmp_path / "whole")


@pytest.mark.slow
def test_a_stop_behind_a_validation(tmp_path: Path):
    """It asks, too: calls 3 and 6 are its own. The axis of what is logged stays the same."""
    config = copy.deepcopy(runs.CASES["sampled-nash_mp"])
    config["trainer"] |= {"val_check_interval": 2, "check_val_every_n_epoch": None}
    config["trainer"] |= {"limit_val_batches": 1}
    runs.whole_run(tmp_path / "whole", config)
    rarely(config)
    for call in (4, 7):
        stopped = tmp_path / f"stopped{call}"
        runs.write(stopped, config)
        stops(stopped, call)
        goes_on(stopped, tmp_path / "whole")


def test_where_one_process_stops_all_do(tmp_path: Path):
    """None waits for the other for ever, and the checkpoint is that of both."""
    config = copy.deepcopy(runs.CASES["sampled-nash_mp"])
    config["trainer"] |= {"devices": 2, "strategy": "ddp_fork"}
    config["data"] = runs.part("TablePrompts", batch_size=2)
    rarely(config)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    runs.whole_run(whole, config)
    runs.write(stopped, config)
    stops(stopped, 7, process=1)
    assert runs.load(stopped)["global_step"] == 6
    goes_on(stopped, whole)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_where_one_process_stops_in_validation_all_do(process: int, tmp_path: Path):
    """Behind two training steps, each of which has two calls."""
    config = copy.deepcopy(runs.CASES["sampled-nash_mp"])
    config["trainer"] |= {"devices": 2, "strategy": "ddp_fork", "num_sanity_val_steps": 0}
    config["trainer"] |= {"val_check_interval": 2, "check_val_every_n_epoch": None}
    config["data"] = runs.part("TablePrompts", batch_size=1)
    rarely(config)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    runs.whole_run(whole, config)
    runs.write(stopped, config)
    stops(stopped, 3, process=process)
    assert runs.load(stopped)["global_step"] == 2
    goes_on(stopped, whole)


RULE = """
def shorter_wins(prompt, first, second):
    with open("asked", "a") as file:
        file.write(f"{prompt} {first} {second}\\n")
    return 0.5 if len(first) == len(second) else float(len(first) < len(second))
"""


def game_of_texts(folder: Path, rounds: int, processes: int) -> list[str]:
    """Play with a language model whose responses a rule judges; the questions that it got."""
    config = copy.deepcopy(runs.CASES["language-nash_mp"])
    oracle = runs.part("RuleOracle", function="rule_that_counts.shorter_wins", check_symmetry=False)
    config["model"]["init_args"]["oracle"] = oracle
    config["data"] = runs.part("TextPrompts", path="prompts.jsonl", batch_size=2)
    config["trainer"]["callbacks"] = [
        runs.part("Budget", rounds=rounds),
        runs.part("GameCheckpoint"),
    ]
    if processes > 1:
        config["trainer"] |= {"devices": processes, "strategy": "ddp_fork"}
    runs.write(folder, config)
    (folder / "rule_that_counts.py").write_text(RULE)
    write_rows(folder / "prompts.jsonl", *({"prompt": letter} for letter in "abcd"))
    run = runs.fit(folder, *(runs.LAST if (folder / runs.RUN).exists() else ()))
    assert run.code == 0, run.err
    return (folder / "asked").read_text().splitlines()


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_what_was_asked_is_in_checkpoint_and_logs(processes: int, tmp_path: Path):
    for rounds in (2, 4):  # the second goes on with the first
        asked = game_of_texts(tmp_path, rounds, processes)
        counts = runs.load(tmp_path)["online_game"]["ledgers"]["ledger"]
        assert counts["queries"] == len(asked)
        assert (counts["swapped"], counts["cache_hits"], counts["invalid"]) == (0, 0, 0)
        assert counts["microseconds"] > 0
    shown = runs.scalars(tmp_path)
    assert float.fromhex(shown["ledger/queries", 4]) == len(asked)
    # Equal words are never asked about: fewer questions than the algorithm's own count.
    assert float.fromhex(shown["oracle/queries", 4]) == 4 * 4 * (2 * processes) * 4 * 2
    assert len(asked) < 4 * 4 * (2 * processes) * 4 * 2


def messages(server: JudgeServer, since: int = 0) -> set[str]:
    """The different messages that the server has got."""
    return {entry["messages"][-1]["content"] for entry in server.entries()[since:]}


def test_a_judge_that_goes_down_ends_the_run_and_nothing_is_lost(tmp_path: Path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with JudgeServer(keep=1) as server:
        runs.judged_game(whole, server.url)
        assert runs.fit(whole).code == 0
        asked = len(messages(server))
        server.stop()
        server.start(away_after=asked // 3)
        runs.judged_game(stopped, server.url)
        run = runs.fit(stopped, before=patience_ends_in_an_outage)
        assert run.code == 2
        assert re.search(
            r"the judge at \S+ has given no answer for 300 s \(its last words: .*Connect", run.err
        )
        assert run.sentence.startswith("nlhf: error: ")
        assert "Traceback" not in run.err
        steps = runs.load(stopped)["global_step"]
        assert 0 < steps < runs.load(whole)["global_step"]
        with sqlite3.connect(stopped / "answers.sqlite") as answers:
            (kept,) = answers.execute("SELECT count(*) FROM answers").fetchone()
        assert kept > 0
        server.stop()
        server.start(port=server.port)
        before = len(server.entries())
        assert runs.fit(stopped, *runs.LAST).code == 0
        assert len(messages(server, before)) == asked - 2 * kept  # both orders of what was not kept
    one, other = runs.load(whole), runs.load(stopped)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert runs.differences(one[key], other[key], key) == []
    assert one["online_game"]["progress"] == other["online_game"]["progress"]
