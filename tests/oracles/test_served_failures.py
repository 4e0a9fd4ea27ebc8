"""Where a server, its oracle or the way to it fails: nothing is lost, asked or counted twice."""

import threading
from types import SimpleNamespace

import pytest
from judge_server_oracles import questions
from judges import FairJudge, Judge
from language_models import refused
from serving import counts, in_loop, serving, start, stop, url

from nlhf_zoo.errors import OracleStoppedError
from nlhf_zoo.oracles import BudgetedOracle, ListedResponses, ServedOracle, ServedTable
from nlhf_zoo.oracles.served import client
from nlhf_zoo.oracles.served import server as served_server

ASKED = questions(12)


@pytest.fixture
def hurried(monkeypatch):
    """Pauses take no time, and are what time passes by."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(client, "time", clock)
    return now


def test_a_reply_that_is_lost_costs_nothing_twice(hurried, monkeypatch):
    exchange, attempts = client.ServedClient._exchange, []

    def lossy(self, method, *others):
        found = exchange(self, method, *others)
        attempts.append(method)
        if len(attempts) % 3:
            raise client._UnreachedError("the reply is lost")
        return found

    inner = Judge()
    with serving(inner) as address:
        monkeypatch.setattr(client.ServedClient, "_exchange", lossy)
        oracle = ServedOracle(address)
        for _ in range(2):
            assert dict(oracle.answers(ASKED)) == dict(Judge().answers(ASKED))
    assert attempts == ["GET"] * 3 + ["POST"] * 6
    assert len(inner.asked) == 24
    assert counts(oracle) == counts(inner)


def test_a_server_forgets_what_has_arrived(hurried):
    there = start(Judge())
    try:
        oracle = ServedOracle(url(there))
        for _ in range(3):
            assert [*oracle.answers(ASKED)]
        assert len(there._desk._batches) == 1  # what the next request would acknowledge
        assert oracle.client.received == [*there._desk._batches]
    finally:
        stop(there)


def test_a_server_that_is_started_again_gives_what_is_missing(monkeypatch):
    """In another order: the number of answers that have arrived says nothing of which."""
    monkeypatch.setattr(served_server, "WAIT", 0.02)
    answered, goes_on = threading.Event(), threading.Event()

    class Slow(Judge):
        def answers(self, asked):
            for given in list(super().answers(asked))[::-1]:  # the first question first
                yield given
                answered.set()
                goes_on.wait()

    first, second = Slow(), Judge()
    there = start(first)
    oracle = ServedOracle(url(there))
    stream = oracle.answers(ASKED)
    found = [next(stream)]
    in_loop(there._runner.cleanup())  # as one that is killed
    again = start(second, port=there.port)
    try:
        found += stream
    finally:
        goes_on.set()
        stop(again)
        there._desk.close()
    assert sorted(found) == sorted(Judge().answers(ASKED))
    assert len(second.asked) == 12


def test_a_server_that_is_down_ends_the_questions(hurried):
    there = start(Judge())
    oracle = ServedOracle(url(there), timeout=60.0, patience=90.0)
    stop(there)
    with pytest.raises(
        OracleStoppedError, match=r"has given no answer for 90 s .*refused"
    ) as found:
        [*oracle.answers(ASKED)]
    assert 80 < hurried[0] <= 90
    assert "\n" not in str(found.value)
    refused("no answer for 10 s", ServedOracle, url(there))  # a run that begins waits less


def test_a_server_that_ends_hands_out_what_was_asked():
    first_asked, goes_on = threading.Event(), threading.Event()

    class Slow(Judge):
        def answers(self, asked):
            for answer in super().answers(asked):
                yield answer
                first_asked.set()
                goes_on.wait()

    inner = Slow()
    there = start(inner)
    oracle = ServedOracle(url(there))
    found, ends = {}, []

    def ask():
        try:
            found.update(oracle.answers(ASKED))
        except OracleStoppedError as error:
            ends.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    first_asked.wait()
    stopping = threading.Thread(target=stop, args=[there])
    stopping.start()
    while not there._desk.is_ending:
        threading.Event().wait(0.001)
    goes_on.set()
    stopping.join()
    asking.join()
    assert ends == [f"the oracle that is served at {url(there)} has stopped: its server is ending"]
    assert counts(oracle)["queries"] == counts(inner)["queries"] == len(inner.asked) == 1
    with pytest.raises(OracleStoppedError, match="its server is ending"):
        there._desk.take(
            {"batch": "x" * 16, "kind": "questions", "conversations": [], "questions": []}
        )


def test_a_budget_of_the_server_ends_the_questions():
    inner = BudgetedOracle(Judge(), max_queries=5)
    with serving(inner) as address:
        oracle = ServedOracle(address)
        found = {}
        with pytest.raises(OracleStoppedError, match="has stopped: the oracle's budget is spent"):
            found.update(oracle.answers(ASKED))  # one by one
    assert len(found) == 5
    assert counts(oracle) == counts(inner)
    assert oracle.ledger["queries"] == 5


def test_what_the_oracle_refuses_is_one_sentence():
    with serving(ListedResponses(FairJudge(silent="b"), _listed())) as address:
        refused(
            "the oracle that is served at .* refuses: FairJudge has no answer to a pair of line 1",
            lambda: ServedTable(address).table,
        )


def _listed():
    from language_models import new_folder

    path = new_folder() / "listed.jsonl"
    path.write_text('{"prompt": "x", "responses": ["a", "b"]}\n')
    return path


def test_an_oracle_that_breaks_does_not_break_the_server(capfd):
    class Broken(Judge):
        def answers(self, asked):
            if len(asked) > 2:
                raise LookupError("a fault of its own")
            return super().answers(asked)

    with serving(Broken()) as address:
        oracle = ServedOracle(address)
        with pytest.raises(OracleStoppedError, match="has met LookupError, a fault of its own"):
            [*oracle.answers(ASKED)]
        assert dict(oracle.answers(ASKED[:2])) == dict(Judge().answers(ASKED[:2]))
    assert 'raise LookupError("a fault of its own")' in capfd.readouterr().err
