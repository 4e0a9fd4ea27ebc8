"""A cache of answers: nothing is asked twice, and nothing that was answered is lost."""

import copy
import math
import multiprocessing
import os
import pickle
import random
import sqlite3
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import torch
from judges import FairJudge, Judge, opinion, prompts, questions, responses

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles import CachedOracle
from nlhf_zoo.oracles.ledger import spent
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.oracles.wrappers.cached import AnswerStore, Remembered

FORK = multiprocessing.get_context("fork")
Send = Callable[[object], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite"


def rows(path: Path) -> dict[bytes, tuple[float, int]]:
    """What an independent reader finds in the file."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = connection.execute("SELECT question, probability, ascending FROM answers")
        return {name: (p, ascending) for name, p, ascending in found}


# ---- what is asked -------------------------------------------------------------------------------


def test_a_second_epoch_costs_no_query(path: Path):
    mine = responses(["a", "b", "c", "d"], ["e", "f", "g", "e"])
    oracle = CachedOracle(FairJudge(), path)
    first = oracle(prompts("x", "y"), mine, mine)
    num_pairs = 6 + 3  # of four texts, and of three different ones
    assert (oracle.oracle.ledger["queries"], oracle.ledger["cache_hits"]) == (num_pairs, 0)
    assert len(rows(path)) == num_pairs
    again = oracle(prompts("x", "y"), mine, mine)
    assert (oracle.oracle.ledger["queries"], oracle.ledger["cache_hits"]) == (num_pairs, num_pairs)
    assert torch.equal(first.preference, again.preference)
    assert first.valid.all()
    assert again.valid.all()
    other = CachedOracle(FairJudge(), path)  # of another run
    assert torch.equal(other(prompts("x", "y"), mine, mine).preference, first.preference)
    assert spent(other)["queries"] == 0


def test_misses_pass_in_the_order_given_with_their_flags(path: Path):
    judge = Judge()
    oracle = CachedOracle(judge, path)
    dict(oracle.answers(questions("ab", "cd")))
    judge.asked.clear()
    ask = [one.swapped() for one in questions("ab", "dc", "ef")] + questions("ab", "gh")
    found = dict(oracle.answers(ask))
    assert judge.asked == [ask[4], ask[2], ask[0]]  # the judge answers the last one first
    assert [one.again for one in judge.asked] == [False, True, True]
    assert found == {n: opinion("x", q.first, q.second) for n, q in enumerate(ask)}
    assert (oracle.ledger["cache_hits"], judge.ledger["swapped"]) == (2, 2)


def test_one_row_serves_both_orders_of_a_symmetric_oracle(path: Path):
    judge = FairJudge()
    oracle = CachedOracle(judge, path)
    ask = questions("ab", "dc")
    first = dict(oracle.answers(ask))
    swapped = dict(oracle.answers([one.swapped() for one in ask]))
    assert len(judge.asked) == len(rows(path)) == 2
    assert first == {0: opinion("x", "a", "b"), 1: 1 - opinion("x", "c", "d")}
    assert swapped == {number: 1 - answer for number, answer in first.items()}
    assert dict(oracle.answers(ask)) == first, "a remembered answer was rounded"


def test_each_order_has_a_row_where_it_may_matter(path: Path):
    oracle = CachedOracle(Judge(), path)
    dict(oracle.answers(questions("ab", "ba")))
    assert len(rows(path)) == 2
    assert not oracle.symmetric


@pytest.mark.parametrize("change", ["prompt", "first", "second", "cut", "oracle", "role"])
def test_another_question_is_another_row(path: Path, change: str):
    (one,) = questions("ab")
    other = {
        "prompt": questions("ab", prompt="y")[0],
        "first": questions("cb")[0],
        "second": questions("ac")[0],
        "cut": Question(one.conversation, "a", "b", first_truncated=True),
        "oracle": one,
        "role": Question([{"role": "system", "content": "z"}, *one.conversation], "a", "b"),
    }[change]
    dict(CachedOracle(Judge(), path).answers([one]))
    judge = Judge(name="another" if change == "oracle" else "judge")
    dict(CachedOracle(judge, path).answers([other]))
    assert judge.asked == [other]


def test_no_answer_is_not_remembered(path: Path):
    judge = Judge(silent="c")
    oracle = CachedOracle(judge, path)
    mine = responses(["a", "b", "c"])
    for _ in range(2):
        answer = oracle(prompts("x"), mine, mine)
        assert answer.valid.logical_not().sum() == 4
    assert len(rows(path)) == 1
    assert (judge.ledger["queries"], oracle.ledger["cache_hits"]) == (3 + 2, 1)
    assert (oracle.ledger["invalid"], judge.ledger["invalid"]) == (4, 0)


def test_what_is_no_probability_is_not_remembered(path: Path):
    class Wrong(FairJudge):
        def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
            yield from ((number, 1.5) for number in range(len(questions)))

    mine = responses(["a", "b"])
    with pytest.raises(RuntimeError, match=r"answered 1\.5"):
        CachedOracle(Wrong(), path)(prompts("x"), mine, mine)
    assert rows(path) == {}


def test_an_answer_is_on_the_disk_before_it_is_handed_on(path: Path):
    oracle = CachedOracle(FairJudge(), path)
    seen = []
    for number, answer in oracle.answers(questions("ab", "ac", "ad")):
        seen.append(answer)
        assert sorted(seen) == sorted(p for p, _ in rows(path).values()), number


def test_answers_before_a_stop_are_kept(path: Path):
    ask = questions("ab", "ac", "ad")
    stream = CachedOracle(Judge(stops_after=2), path).answers(ask)
    found = [next(stream), next(stream)]
    with pytest.raises(OracleStoppedError, match="the judge is down"):
        next(stream)
    assert {p for p, _ in rows(path).values()} == {answer for _, answer in found}
    judge = Judge()
    dict(CachedOracle(judge, path).answers(ask))
    assert judge.asked == ask[:1]


def test_it_may_be_copied_pickled_and_called_from_another_thread(path: Path):
    oracle = CachedOracle(FairJudge(), path)
    stream = oracle.answers(questions("ab", "ac"))
    found = [next(stream)]
    thread = threading.Thread(target=lambda: found.extend(stream))  # the rest, from elsewhere
    thread.start()
    thread.join()
    for twin in (copy.deepcopy(oracle), pickle.loads(pickle.dumps(oracle))):
        before = len(twin.oracle.asked)
        assert sorted(twin.answers(questions("ab", "ac"))) == sorted(found)
        assert len(twin.oracle.asked) == before
    next(oracle.answers(questions("ab", "ac")))  # who leaves the rest leaves no connection behind
    os.rename(path, path.with_suffix(".moved"))
    assert not Path(f"{path}-wal").exists()


# ---- processes -----------------------------------------------------------------------------------


class Slow(TextOracle):
    """Answers ``opinion`` of sorted texts plus what is this process's own, taking its time."""

    def __init__(self, own: float = 0.0, seconds: float = 0.0) -> None:
        super().__init__()
        self.own, self.seconds = own, seconds

    @property
    def fingerprint(self) -> str:
        return "slow"

    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        for number, question in enumerate(questions):
            time.sleep(self.seconds)
            yield number, (opinion("x", question.first, question.second) + self.own) / 2


def child(work: Callable[..., None], *args: object) -> tuple[BaseProcess, Connection]:
    """A process of its own for some work, and where to read what it sends by its first argument."""
    reading, writing = FORK.Pipe(duplex=False)
    process = FORK.Process(target=work, args=(writing.send, *args))
    with warnings.catch_warnings():
        # Python 3.12 warns of threads; the child uses none of what torch's may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    writing.close()
    return process, reading


def messages(reading: Connection) -> Iterator[Any]:
    """What a process sends, until it ends."""
    with suppress(EOFError):
        while True:
            yield reading.recv()


def received(process: BaseProcess, reading: Connection) -> list[Any]:
    """All that a process sends."""
    found = [*messages(reading)]
    process.join()
    assert process.exitcode == 0
    return found


def test_no_acknowledged_answer_is_lost_when_a_process_is_killed(tmp_path: Path):
    rng = random.Random(0)
    ask = [Question(questions("ab")[0].conversation, f"a{n}", f"b{n}") for n in range(2000)]
    truth = {n: opinion("x", q.first, q.second) / 2 for n, q in enumerate(ask)}
    names = [q.digest("slow", ordered=False) for q in ask]
    path, known = tmp_path / "none", {}
    for kill in range(24):
        if kill % 6 == 0:  # a new file: it may be killed while it makes one
            path, known = tmp_path / f"{kill}.sqlite", {}
        todo = [n for n in range(len(ask)) if n not in known]

        def work(send: Send, path: Path, todo: list[int]) -> None:
            for place, answer in CachedOracle(Slow(), path).answers([ask[n] for n in todo]):
                send((todo[place], answer))

        process, reading = child(work, path, todo)
        known.update(islice(messages(reading), rng.choice((0, 1, 30))))
        time.sleep(rng.uniform(0, 0.003))
        process.kill()
        known.update(messages(reading))
        process.join()
        with AnswerStore(path).opened() as store:  # it opens
            found = store.find(names)
        for number, answer in known.items():
            assert found.get(names[number]) == Remembered(answer, True), "an answer was lost"
        for name, (answer, _) in rows(path).items():
            assert answer == truth[names.index(name)], "an answer is not what was said"


def test_processes_share_it(tmp_path: Path):
    ask = [Question(questions("ab")[0].conversation, f"a{n}", f"b{n}") for n in range(150)]
    for trial in range(3):  # each with a file that all of them find missing
        path = tmp_path / f"{trial}.sqlite"
        start = FORK.Barrier(3)

        def work(send: Send, own: int, path: Path, start: Barrier) -> None:
            start.wait(60)
            order = random.Random(own).sample(range(len(ask)), len(ask))
            # Of each pair a process says something else: what is handed on is what was kept.
            shown = [ask[n].swapped() if (n + own) % 2 else ask[n] for n in order]
            oracle = CachedOracle(Slow(own / 3, 1e-4), path)
            for place, answer in oracle.answers(shown):
                n = order[place]
                send((n, 1 - answer if (n + own) % 2 else answer))
            send(("hits", oracle.ledger["cache_hits"]))

        started = [child(work, own, path, start) for own in range(3)]
        said = [dict(received(*one)) for one in started]
        # No pair is asked about twice, whoever is first.
        assert sum(answers.pop("hits") for answers in said) == 2 * len(ask)
        kept = rows(path)
        assert len(kept) == len(ask)
        for n, question in enumerate(ask):
            p, ascending = kept[question.digest("slow", ordered=False)]
            for answers in said:
                assert answers[n] == pytest.approx(p if ascending else 1 - p, abs=1e-15)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_process_waits_while_another_writes(path: Path):
    oracle = CachedOracle(Slow(), path)
    dict(oracle.answers(questions("ab")))
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.3, lambda: other.execute("COMMIT"))
        timer.start()
        assert dict(oracle.answers(questions("ac"))) == {0: opinion("x", "a", "c") / 2}
        timer.join()


def test_a_process_that_is_forked_asks_on(path: Path):
    oracle = CachedOracle(Slow(), path)
    stream = oracle.answers(questions("ab", "ac"))
    next(stream)  # its connection is open

    def work(send: Send) -> None:
        for answer in oracle.answers(questions("ad", "ae")):
            send(answer)

    assert received(*child(work)) == [(n, opinion("x", "a", "de"[n]) / 2) for n in range(2)]
    assert len([*stream]) == 1
    assert len(rows(path)) == 4


# ---- refusals ------------------------------------------------------------------------------------


def refused(path: Path | str, oracle: TextOracle | None = None) -> str:
    with pytest.raises(UserError) as error:
        dict(CachedOracle(oracle or Judge(), path).answers(questions("ab")))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_that_are_none_of_ours(tmp_path: Path):
    text, other, newer = (tmp_path / name for name in ("notes.txt", "other.db", "newer.sqlite"))
    text.write_text("not a database, but long enough to have a header of one hundred bytes " * 3)
    before = text.read_bytes()
    assert "notes.txt is no file of answers: file is not a database" in refused(text)
    assert text.read_bytes() == before
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE answers (question, probability, ascending)")
        connection.commit()
    assert "other.db is a database of something else: give another path" in refused(other)
    dict(CachedOracle(Judge(), newer).answers(questions("ab")))
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 2")
    assert "newer.sqlite holds answers in the format 2 of another version" in refused(newer)


def test_places_where_there_can_be_none(tmp_path: Path):
    assert f"there is no folder {tmp_path}/nowhere for" in refused(tmp_path / "nowhere/a.sqlite")
    assert "is a folder: give a file for answers" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.sqlite")
    assert "is a device or a pipe: give a file for" in refused(tmp_path / "pipe.sqlite")
    if Path("/proc").is_dir():  # where nobody can make a file
        sentence = refused("/proc/a.sqlite")
        assert "unable to open database file" in sentence or "no permission" in sentence


def test_places_where_this_user_may_not_write():
    """Root may write everywhere: a child gives that up first."""

    def work(send: Send, folder: Path) -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        for name in ("new", "old"):
            try:
                CachedOracle(Judge(), folder / name)
            except UserError as error:
                send(str(error))

    with tempfile.TemporaryDirectory() as name:  # in one that everybody may enter
        folder = Path(name)
        dict(CachedOracle(Judge(), folder / "old").answers(questions("ab")))
        (folder / "old").chmod(0o444)
        folder.chmod(0o555)
        sentences = received(*child(work, folder))
        folder.chmod(0o755)
    assert sentences == [
        f"the answers in {folder / file} cannot be written: no permission"
        for file in ("new", "old")
    ]


def test_a_full_disk_ends_the_run_and_keeps_what_was_acknowledged(path: Path):
    """SQLite's own limit of pages stands for the disk's."""
    ask = [Question(questions("ab")[0].conversation, f"a{n}" * 9, "b") for n in range(3000)]
    found: list[Answer] = []
    oracle = CachedOracle(Slow(), path)
    dict(oracle.answers(ask[:1]))
    real, limit = sqlite3.connect, "PRAGMA max_page_count = 4"

    def limited(*args: object, **options: object) -> sqlite3.Connection:
        connection = real(*args, **options)  # type: ignore[call-overload]
        connection.execute(limit)
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", limited)
        stream = oracle.answers(ask)
        with pytest.raises(OracleStoppedError, match="cannot be read or written: database or disk"):
            found.extend(stream)
    assert 50 < len(found) < 3000
    assert len(rows(path)) == len(found)


def test_an_oracle_whose_answers_cannot_be_remembered(path: Path):
    class Forgetful(Judge):
        @property
        def fingerprint(self) -> str:
            raise UserError("its answers are drawn anew each time: leave out CachedOracle")

    with pytest.raises(UserError, match="drawn anew"):
        CachedOracle(Forgetful(), path)
    assert not path.exists()


def test_the_fingerprint_is_taken_once(path: Path):
    class Drifting(FairJudge):
        taken = 0

        @property
        def fingerprint(self) -> str:
            self.taken += 1
            return f"version {self.taken}"

    oracle = CachedOracle(judge := Drifting(), path)
    for _ in range(2):
        dict(oracle.answers(questions("ab", "ac")))
    assert oracle.fingerprint == "version 1"
    assert (judge.taken, len(judge.asked), len(rows(path))) == (1, 2, 2)


def test_the_store_refuses_what_is_no_answer(path: Path):
    with AnswerStore(path).opened() as store:
        for name, p in [(b"short", 0.5), (b"x" * 16, 1.5), (b"x" * 16, math.nan)]:
            with pytest.raises(OracleStoppedError, match="cannot be read or written"):
                store.keep(name, Remembered(p, True))
    assert rows(path) == {}
