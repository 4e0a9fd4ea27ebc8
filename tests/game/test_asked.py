"""What an oracle was asked is known to a run that was killed: no budget is exceeded."""

import copy
import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import runs
from forked import KILLED
from judge_server import JudgeServer
from rows import write as write_rows

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles.journal import Journal, forget_others, journalled, uncounted
from nlhf_zoo.oracles.ledger import Ledger

BUDGET = 150
ASKED = runs.RUN / "checkpoints" / "asked-0.jsonl"


def kill_after(requests: int) -> None:
    """Kill this process when so many requests were answered."""
    from nlhf_zoo.oracles.judge.client import Session

    post, number = Session.post, [0]

    async def counted(self: Any, body: Any) -> Any:
        outcome = await post(self, body)
        number[0] += 1
        if number[0] == requests:
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome

    Session.post = counted  # type: ignore[method-assign]


def game(folder: Path, url: str) -> None:
    """A language model and a judge that may be asked so often; nothing is remembered."""
    config = copy.deepcopy(runs.CASES["language-nash_mp"])
    judge = runs.part(
        "JudgeOracle", model="small", base_url=url, api_key_env=None, concurrency=1, timeout=200.0
    )
    oracle = runs.part("BudgetedOracle", oracle=judge, max_requests=BUDGET)
    config["model"]["init_args"]["oracle"] = oracle
    config["data"] = runs.part("TextPrompts", path="prompts.jsonl", batch_size=2)
    checkpoint = runs.part("GameCheckpoint", every_n_train_steps=2)
    config["trainer"]["callbacks"] = [runs.part("Budget", rounds=1000), checkpoint]
    runs.write(folder, config)
    write_rows(folder / "prompts.jsonl", *({"prompt": letter} for letter in "abcd"))


def requests(folder: Path) -> int:
    ledgers = runs.load(folder)["online_game"]["ledgers"]
    return int(sum(counts["requests"] for counts in ledgers.values()))


@pytest.mark.slow
def test_kills_do_not_stretch_a_budget(tmp_path: Path):
    with JudgeServer() as server:
        game(tmp_path, server.url)
        for number, resume in ((70, ()), (45, runs.LAST)):
            run = runs.fit(tmp_path, *resume, before=functools.partial(kill_after, number))
            assert run.code == KILLED
        # More was asked than the checkpoint knows, and it is written.
        assert len(server.entries()) == 70 + 45
        assert requests(tmp_path) < 70 + 45
        lines = [json.loads(line) for line in (tmp_path / ASKED).read_text().splitlines()]
        assert {line["ledger"]: line["requests"] for line in lines} == {
            "ledger": 0, "oracle.ledger": 70 + 45
        }  # fmt: skip
        run = runs.fit(tmp_path, *runs.LAST)
        assert run.code == 2
        assert f"in {BUDGET} requests" in run.sentence
        assert len(server.entries()) == requests(tmp_path) == BUDGET
        run = runs.fit(tmp_path, *runs.LAST)  # and nothing more
        assert run.code == 2
        assert len(server.entries()) == BUDGET


def ledger(**counts: int) -> Ledger:
    one = Ledger()
    one.charge(**counts)
    return one


def test_processes_add_up_and_a_checkpoint_may_know_more(tmp_path: Path):
    ours = {"ledger": ledger(queries=5), "oracle.ledger": ledger(queries=2, requests=9)}
    first = Journal(tmp_path, 0, ours, begins=True)
    theirs = {"ledger": Ledger(), "oracle.ledger": Ledger()}
    Journal(tmp_path, 1, theirs, begins=False)
    Journal(tmp_path, 7, theirs, begins=False)
    theirs["oracle.ledger"].charge(requests=10**17)
    ours["ledger"].charge(queries=3, reply_tokens=4)
    # Two processes with the number 7 and 1 have seen the charge of one ledger.
    asked = journalled(tmp_path)
    assert asked["ledger"]["queries"] == 8
    assert asked["ledger"]["reply_tokens"] == 4
    assert asked["oracle.ledger"]["requests"] == 9 + 2 * 10**17
    forget_others(tmp_path, 2)
    assert journalled(tmp_path)["oracle.ledger"]["requests"] == 9 + 10**17
    saved = {"ledger": ledger(queries=10), "oracle.ledger": ledger(requests=9), "new": Ledger()}
    extra = dict.fromkeys(saved["new"].here, 0)
    wanted = [extra | {"reply_tokens": 4}, extra | {"queries": 2, "requests": 10**17}, extra]
    assert uncounted(saved, tmp_path) == [n for counts in wanted for n in counts.values()]
    first.end()
    ours["ledger"].charge(queries=1)
    assert journalled(tmp_path)["ledger"]["queries"] == 8


def test_what_cannot_be_written_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = Ledger()
    Journal(tmp_path, 0, {"ledger": one}, begins=True)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OracleStoppedError, match=r"asked-0\.jsonl.*No space left on device"):
        one.charge(queries=1)
    assert one["queries"] == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"queries": 1}', '{"ledger": "x", "queries": "y"}'])
def test_a_file_that_is_no_journal_is_named(tmp_path: Path, text: str):
    (tmp_path / "asked-0.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"asked-0\.jsonl.*remove it to go on"):
        journalled(tmp_path)
