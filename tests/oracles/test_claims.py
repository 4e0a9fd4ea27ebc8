"""Processes and threads that share a file of answers do not ask the same question at once."""

import multiprocessing
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from judges import FairJudge, questions

from nlhf_zoo.oracles import CachedOracle
from nlhf_zoo.oracles.text_oracle import Answer, Question
from nlhf_zoo.oracles.wrappers import cached, claims

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite"


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Pauses of those who wait for others' answers, which take next to no time."""
    taken: list[float] = []

    def sleep(seconds: float) -> None:
        taken.append(seconds)
        time.sleep(0.001)

    monkeypatch.setattr(cached, "time", SimpleNamespace(sleep=sleep))
    return taken


@pytest.mark.parametrize("silent", ["", "c"])
def test_what_another_is_asking_is_waited_for(path: Path, pauses: list[float], silent: str):
    """What the other gets no answer to is asked for once more."""

    class Waits(FairJudge):
        def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
            for answer in super().answers(questions):
                while not pauses:  # the other one has seen that these are asked
                    time.sleep(0.001)
                yield answer

    ask = questions("ab", "ac", "ad")
    first, second = Waits(silent=silent), FairJudge(silent=silent)
    asking, waiting = CachedOracle(first, path), CachedOracle(second, path)
    found: list[Answer] = []
    stream = asking.answers(ask)
    thread = threading.Thread(target=lambda: found.extend(stream))
    thread.start()
    while not first.asked:  # all are claimed
        time.sleep(0.001)
    said = dict(waiting.answers(ask))
    thread.join()
    assert {n: p for n, p in said.items() if p == p} == {n: p for n, p in found if p == p}
    assert len(first.asked) == 3
    assert second.asked == [q for q in ask if silent and silent in (q.first, q.second)]
    assert waiting.ledger["cache_hits"] == 3 - len(second.asked)


def test_claims_end_with_the_process_that_holds_them(path: Path, pauses: list[float]):
    ask = questions("ab", "ac")
    reading, writing = FORK.Pipe(duplex=False)

    def work() -> None:
        stream = CachedOracle(FairJudge(), path).answers(ask)
        writing.send(next(stream))  # of the other question it holds the claim
        threading.Event().wait(600)

    process = FORK.Process(target=work)
    with warnings.catch_warnings():  # Python 3.12 warns of threads
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    number, answer = reading.recv()

    def kill() -> None:
        while not pauses:
            time.sleep(0.001)
        process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    judge = FairJudge()
    found = dict(CachedOracle(judge, path).answers(ask))
    killer.join()
    process.join()
    reading.close(), writing.close()
    assert found == dict(FairJudge().answers(ask))
    assert found[number] == answer
    assert judge.asked == [ask[1 - number]]


def test_who_hangs_is_not_waited_for_for_ever(path: Path, pauses: list[float], monkeypatch):
    """Such as a stream that nobody reads, in this very thread."""
    monkeypatch.setattr(cached, "_PATIENCE", 1.0)
    ask, judge = questions("ab", "ac"), FairJudge()
    stream = CachedOracle(FairJudge(), path).answers(ask)
    number, answer = next(stream)
    found = dict(CachedOracle(judge, path).answers(ask))
    assert found[number] == answer
    assert judge.asked == [ask[1 - number]]
    assert 1 < sum(pauses) < 1.2
    stream.close()


def test_without_such_locks_nobody_waits(path: Path, pauses: list[float], monkeypatch):
    monkeypatch.setattr(claims, "_SET_LOCK", None)
    ask, judge = questions("ab", "ac"), FairJudge()
    stream = CachedOracle(FairJudge(), path).answers(ask)
    number, answer = next(stream)
    assert dict(CachedOracle(judge, path).answers(ask))[number] == answer
    assert len(judge.asked) == 1
    assert pauses == []
