"""A judge behind an endpoint: what it is asked, what is counted, and what nobody may see."""

import asyncio
import gc
import itertools
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from itertools import pairwise

import pytest
from judge_server import JudgeServer, rule
from judge_server_oracles import Clock, oracle, patience_ends_in_an_outage, questions
from paths import ROOT

from nlhf_zoo.errors import OracleStoppedError
from nlhf_zoo.oracles.judge import client, scheduler
from nlhf_zoo.oracles.judge.client import Failure, Session, retry_after
from nlhf_zoo.oracles.judge.oracle import JudgeOracle
from nlhf_zoo.oracles.text_oracle import Question

KEY = "sk-test-7fQ2/xY+93hFz0PqLm"


@pytest.fixture(scope="module")
def server():
    with JudgeServer(keep=1) as server:
        yield server


def of(server: JudgeServer, question: Question) -> list[dict]:
    """What the server was asked about a question, as it is shown."""
    shown = [question.first, question.second]
    return [entry for entry in server.entries() if [entry["first"], entry["second"]] == shown]


def named(name: str, num: int = 1) -> list[Question]:
    """Questions that no other test asks."""
    said = [{"role": "user", "content": name}]
    return [Question(said, f"{name}, one {i}", f"{name}, other {i}") for i in range(num)]


# ---- what is asked -------------------------------------------------------------------------------


def test_as_shown_is_what_the_judge_said(server):
    asked = named("as shown", 5)
    answers = dict(oracle(server, patience=1e300).in_given_order(asked))
    assert answers == {n: rule(one.first, one.second) for n, one in enumerate(asked)}


def test_log_probabilities(server):
    asked = named("log-probabilities", 20)
    answers = dict(oracle(server, verdict="logprobs", max_tokens=4).in_given_order(asked))
    for number, question in enumerate(asked):
        assert answers[number] == pytest.approx(rule(question.first, question.second), abs=1e-6)
        (entry,) = of(server, question)
        assert entry["request"]["logprobs"] is True
        assert entry["request"]["top_logprobs"] == 20


def test_probabilities_of_options(server):
    """As `/v1/systemone` of `transformers serve` gives them, which takes no other fields."""
    asked = named("options", 20)
    judge = oracle(server, verdict="options", top_logprobs=5)
    answers = dict(judge.in_given_order(asked))
    for number, question in enumerate(asked):
        assert answers[number] == pytest.approx(rule(question.first, question.second))
        (entry,) = of(server, question)
        assert entry["request"].keys() == {"model", "state", "questions"}
        assert list(entry["request"]["questions"]["better"]["criteria"]) == ["A", "B"]
    assert judge.ledger["prompt_tokens"] == 100 * 20


def test_a_request_holds_what_it_should_and_nothing_else(server, monkeypatch):
    for name in ("ORG_ID", "PROJECT_ID", "BASE_URL", "ADMIN_KEY", "API_KEY", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", "http://127.0.0.1:1/of-the-environment")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-spy: of-the-environment")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "An apple."},
        {"role": "user", "content": "Another."},
    ]
    question = Question(said, "A pear.", "A stone.")
    options = {"temperature": None, "max_tokens": None, "extra_body": {"seed": 3}}
    judge = JudgeOracle("small", server.url, "JUDGE_KEY", system="Judge.", order="none", **options)
    assert dict(judge.answers([question])) == {0: rule("A pear.", "A stone.")}
    (entry,) = of(server, question)
    assert entry["authorization"] == f"Bearer {KEY}"
    assert entry["request"] == {"model": "small", "seed": 3}
    system, user = entry["messages"]
    assert system == {"role": "system", "content": "Judge."}
    at = [user["content"].index(text["content"]) for text in said]
    assert at == sorted(at)
    assert all(f"| {one['role']}:\n| {one['content']}\n" in user["content"] for one in said)
    assert not {"openai-organization", "openai-project", "x-spy"} & set(entry["headers"])
    judge.client.close()

    question = Question(said, "A pear!", "A stone!")
    list(oracle(server, order="none").answers([question]))
    (entry,) = of(server, question)
    assert entry["authorization"] is None
    assert entry["request"] == {"model": "small", "temperature": 0.0, "max_tokens": 256}


def test_the_fingerprint_tells_templates_apart_and_not_keys(server, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    (tmp_path / "mine.txt").write_text("{prompt} {first} {second}")
    plain = oracle(server, patience=1e6).fingerprint
    assert oracle(server, template=str(tmp_path / "mine.txt")).fingerprint != plain
    assert JudgeOracle("small", server.url, "JUDGE_KEY").fingerprint == plain


# ---- what fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503, 529])
def test_what_may_pass_is_tried_again_and_then_invalid(status):
    with JudgeServer(always=f"status_{status}") as server:
        judge, state = oracle(server, retries=2, backoff=0.01, order="none"), random.getstate()
        ((number, answer),) = judge.answers(questions(1))
        assert random.getstate() == state  # the run's own
        assert number == 0
        assert math.isnan(answer)
        assert [entry["attempt"] for entry in server.entries()] == [1, 2, 3]
    assert judge.ledger["requests"] == 3
    assert judge.ledger["retries"] == 2
    assert f"status {status}" in judge.last_error


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_is_refused_is_invalid_and_not_asked_again(status):
    with JudgeServer(always=f"status_{status}") as server:
        judge = oracle(server, order="none")
        assert all(math.isnan(answer) for _, answer in judge.answers(questions(3)))
        assert len(server.entries()) == judge.ledger["requests"] == 3
    assert judge.ledger["retries"] == 0


def test_what_is_had_when_an_endpoint_refuses_is_handed_out(server, monkeypatch):
    judge, had, refused = oracle(server, order="none"), [], []

    async def post(self, body, post=Session.post):
        text = body["messages"][-1]["content"]
        if "| gone, one 1\n" in text:
            while not had:
                await asyncio.sleep(0.01)
            refused.append(1)
            return Failure("status 401, gone", 401)
        while not refused and "| gone, one 0\n" not in text:
            await asyncio.sleep(0.01)
        return await post(self, body)

    def read() -> None:
        for number, _ in judge.answers(named("gone", 4)):
            had.append(number)
            while len(asyncio.all_tasks(judge.client.session().loop)) > 1:
                time.sleep(0.01)  # until all outcomes are there

    monkeypatch.setattr(Session, "post", post)
    with pytest.raises(OracleStoppedError, match=r"refused its last question .status 401, gone"):
        read()
    assert sorted(had) == [0, 2, 3]
    assert judge.ledger["reply_tokens"] == 7 * 3


def test_a_judge_that_is_down_ends_the_run_with_its_last_words(monkeypatch):
    with JudgeServer() as server:
        patience_ends_in_an_outage(monkeypatch)
        judge = oracle(server, order="none", retries=50, patience=600.5, concurrency=4)
        answers = judge.answers(questions(400))
        had = [next(answers) for _ in range(5)]
        server.stop()
        with pytest.raises(
            OracleStoppedError, match=r"no answer for 600\.5 s .its last words: Connection\w+Error "
        ):
            had.extend(answers)
        log = server.entries()
    asked = questions(400)
    assert all(answer == rule(asked[n].first, asked[n].second) for n, answer in had)
    # All that the server had replied to was handed out, but for what was lost on its way.
    assert 5 <= len(had) <= len(log) <= len(had) + 4


def each_request_takes(monkeypatch, seconds: float, judge: JudgeOracle) -> None:
    """On the clock of patience, where one is asked after the other."""
    clock = Clock(ahead=lambda: seconds * judge.ledger["requests"])
    monkeypatch.setattr(scheduler, "time", clock)


def test_patience_goes_on_from_call_to_call(monkeypatch):
    with JudgeServer(always="status_503") as server:
        judge = oracle(server, order="none", retries=1, timeout=900.0, patience=4500.0)
        each_request_takes(monkeypatch, 1000.0, judge)
        answers = [list(judge.answers(questions(1))) for _ in range(2)]  # 4000 s of asking
        assert all(math.isnan(answer) for ((_, answer),) in answers)
        with pytest.raises(OracleStoppedError, match=r"4500 s .its last words: status 503"):
            list(judge.answers(questions(1)))
        assert judge.ledger["requests"] == 5
        list(judge.answers(questions(1)))  # who goes on has all patience again
    assert judge.ledger["requests"] == 7


def test_retry_after_is_honoured():
    with JudgeServer(always="status_429", retry_after=0.4) as server:
        list(oracle(server, order="none", backoff=0.001).answers(questions(2)))
        log = server.entries()
    for question in questions(2):
        times = [entry["time"] for entry in log if entry["first"] == question.first]
        assert len(times) == 4
        assert min(after - before for before, after in pairwise(times)) >= 0.4


@pytest.mark.parametrize("always", ["", "status_400"])
def test_patience_begins_anew_with_each_answer(always, monkeypatch):
    with JudgeServer(always=always) as server:
        judge = oracle(server, order="none", concurrency=1, timeout=900.0, patience=1500.0)
        each_request_takes(monkeypatch, 1000.0, judge)
        assert len(dict(judge.answers(questions(7)))) == 7  # 7,000 s


@pytest.mark.parametrize("always", ["timeout", "drip"])
def test_a_reply_that_does_not_end_in_time_is_none(always):
    with JudgeServer(always=always) as server:
        judge = oracle(server, retries=1, order="none", timeout=0.05)
        assert all(math.isnan(answer) for _, answer in judge.answers(questions(3)))
    assert judge.ledger["requests"] == 6
    assert judge.last_error == "no whole reply within 0.05 s"


def test_a_reader_may_take_longer_than_patience(server, monkeypatch):
    judge, had = oracle(server, concurrency=2, order="none"), []

    async def slow(self, body, post=Session.post):
        while "one 1\n" in body["messages"][-1]["content"] and judge.ledger["requests"] < 3:
            await asyncio.sleep(0.01)  # it is on its way while the reader is away
        return await post(self, body)

    monkeypatch.setattr(Session, "post", slow)
    monkeypatch.setattr(scheduler, "time", Clock(ahead=lambda: 1e6 * len(had)))
    for answer in judge.answers(named("slow reader", 10)):
        had.append(answer)
    assert len(had) == 10


def test_waiting_for_the_rate_takes_no_patience(server, monkeypatch):
    limits = {"requests_per_minute": 1200, "timeout": 400.0, "patience": 400.0}
    pauses: list = []

    async def waited(self, seconds, pause=scheduler.RequestScheduler._pause):
        await pause(self, seconds)
        pauses.append(seconds)

    monkeypatch.setattr(scheduler.RequestScheduler, "_pause", waited)
    monkeypatch.setattr(scheduler, "time", Clock(ahead=lambda: 500.0 * len(pauses)))
    judge = oracle(server, order="none", concurrency=1, **limits)
    assert len(dict(judge.answers(named("rate", 4)))) == len(pauses) == 4


def test_an_exception_that_is_no_fault_of_the_servers_is_passed_on(server, monkeypatch):
    async def broken(self, body):
        raise ValueError("a bug")

    monkeypatch.setattr(Session, "_post", broken)
    with pytest.raises(ValueError, match="a bug"):
        list(oracle(server).answers(questions(3)))


def test_what_is_had_when_patience_ends_is_handed_out(server, monkeypatch):
    """One answer comes in while another question is to be asked again, and a third one hangs."""
    turn = threading.Event()

    async def post(self, body, post=Session.post):
        if "| had, one 0\n" in body["messages"][-1]["content"]:
            return Failure("not now")
        while not turn.is_set() or "| had, one 2\n" in body["messages"][-1]["content"]:
            await asyncio.sleep(0.01)
        return await post(self, body)

    def decide(self, number, attempts, allowed, decide=scheduler.RequestScheduler._decide):
        if attempts > 1:
            turn.set()
            while self._inbox.empty():
                time.sleep(0.01)
            self._silent = 1e9
        decide(self, number, attempts, allowed)

    monkeypatch.setattr(Session, "post", post)
    monkeypatch.setattr(scheduler.RequestScheduler, "_decide", decide)
    had: list = []
    with pytest.raises(OracleStoppedError, match=r"no answer for 3600 s .its last words: not now"):
        had.extend(oracle(server, order="none").answers(named("had", 3)))
    assert [number for number, _ in had] == [1]


def test_the_wait_before_another_attempt():
    limits = scheduler.RateLimits(1, None, 60.0, retries=5, backoff=2.0, patience=300.0)
    for attempts, longest in {1: 2, 2: 4, 5: 32, 6: 60, 5000: 60}.items():
        waits = [limits.wait(attempts, None) for _ in range(100)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
    assert limits.wait(1, 70.0) == 70
    assert limits.wait(1, math.inf) == 150  # half of the patience


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("7", 0.0) == 7
    assert retry_after("0", 0.0) == 0
    assert retry_after("-3", 0.0) == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", 1445412470.0) == 10
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", 1445412490.0) == 0
    for nonsense in (None, "", "soon", "nan"):
        assert retry_after(nonsense, 0.0) is None


# ---- how hard it is asked ------------------------------------------------------------------------


def test_concurrency_is_kept_and_used(monkeypatch):
    monkeypatch.setattr("aiohttp.connector.monotonic", lambda: 0.0)  # no connection grows old
    with JudgeServer(hold=7) as server:  # no reply before 7 are asked for at once
        list(oracle(server, concurrency=7).answers(questions(40)))
        assert max(entry["open"] for entry in server.entries()) == 7
        assert len(server.entries("accepted")) == 7  # connections live on


def test_requests_are_spaced_evenly(server):
    asked = named("spaced", 10)
    judge = oracle(server, requests_per_minute=1200, order="none")
    began = time.monotonic()
    answers = itertools.chain(*(judge.answers(part) for part in (asked[:6], asked[6:])))
    for number, _ in enumerate(answers):  # so many requests at least were before this one's
        assert time.monotonic() - began >= number * 0.05 - 1e-6
    assert judge.ledger["requests"] == len(asked)


# The orders of a pair follow each other: 10 pairs are asked about in both, and one at most in one.
@pytest.mark.parametrize(("field", "most", "requests"), [("requests", 21, 21), ("queries", 10, 20)])
def test_a_budget_ends_the_asking_and_hands_out_what_is_had(server, field, most, requests):
    asked, judge = named(f"budget of {field}", 60), oracle(server, concurrency=8)

    def gate(counts):
        if judge.ledger[field] + counts.get(field, 0) > most:
            raise OracleStoppedError("spent")

    judge.ledger.gates.append(gate)
    had = {}
    with pytest.raises(OracleStoppedError, match="spent"):
        had.update(judge.answers(asked))  # one by one: it keeps those before the exception
    orders = [shown for question in asked for shown in (question, question.swapped())]
    assert sum(len(of(server, shown)) for shown in orders) == judge.ledger["requests"] == requests
    assert had == {
        number: pytest.approx(0.5 * (rule(one.first, one.second) + 1 - rule(one.second, one.first)))
        for number, one in enumerate(asked[:10])
    }


@pytest.fixture
def interrupts():
    """Interrupts are heard: what a shell has begun in the background is deaf to them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_it_at_once(interrupts):
    with JudgeServer(always="timeout") as server:
        judge = oracle(server, timeout=1e6, patience=1e6)  # else it would never end

        def interrupt() -> None:
            while not server.entries():  # until it waits for a reply
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            list(judge.answers(questions(3)))
        thread.join()
        while len(asyncio.all_tasks(judge.client.session().loop)) > 1:  # requests are given up
            time.sleep(0.01)
        judge.client.close()


def test_a_spent_budget_ends_the_waiting_for_another_attempt(server, monkeypatch):
    async def broken_at_first(self, body, post=Session.post):
        is_first = "| waiting, one 0\n" in body["messages"][-1]["content"]
        return Failure("not now") if is_first else await post(self, body)

    def gate(counts):
        if judge.ledger["requests"] == 5:
            raise OracleStoppedError("spent")

    monkeypatch.setattr(Session, "post", broken_at_first)
    monkeypatch.setattr(scheduler, "_LONGEST_BACKOFF", 1e6)
    judge = oracle(server, order="none", concurrency=2, backoff=1e6)
    judge.ledger.gates.append(gate)
    had = []
    with pytest.raises(OracleStoppedError, match="spent"):
        had.extend(judge.answers(named("waiting", 10)))
    assert [number for number, _ in had] == [1, 2, 3, 4]


def test_who_stops_reading_answers_stops_the_asking():
    with JudgeServer(hold=4) as server:
        judge = oracle(server, concurrency=4, order="none")
        answers = judge.answers(questions(100))
        next(answers)
        answers.close()
        judge.client.close()  # and its thread has ended: nothing more can be sent
        assert len(server.entries()) == judge.ledger["requests"] == 4


def test_a_client_that_is_closed_ends_the_asking(server, monkeypatch):
    judge = oracle(server, order="none")
    assert list(judge.answers([])) == []
    assert judge.client._sessions == {}  # nothing was started for it

    def decide(self, number, attempts, allowed, decide=scheduler.RequestScheduler._decide):
        if number == 7:
            judge.client.close()
        decide(self, number, attempts, allowed)

    monkeypatch.setattr(scheduler.RequestScheduler, "_decide", decide)
    with pytest.raises(CancelledError):
        list(judge.answers(named("closed", 20)))


# ---- where it runs -------------------------------------------------------------------------------


def check(judge: JudgeOracle, name: str, into: list | None = None) -> None:
    (question,) = named(name)
    answers = dict(judge.in_given_order([question]))
    assert answers == {0: rule(question.first, question.second)}
    if into is not None:
        into.append(answers)


def in_child(judges: list[JudgeOracle], queue) -> None:
    done: list = []
    check(judges[0], "in a forked process", done)
    judges.clear()
    gc.collect()
    queue.put(done)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_threads_forks_and_running_loops(server):
    judges = [oracle(server)]  # the only one who holds it
    check(judges[0], "before")
    in_threads(lambda name: check(judges[0], name))

    async def notebook():
        check(judges[0], "under a running loop")

    asyncio.run(notebook())
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=in_child, args=(judges, queue), daemon=True)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert queue.get()
    check(judges[0], "in the parent, after the fork")
    judges[0].client.close()
    check(judges[0], "after it was closed")


def in_threads(do: Callable[[str], object]) -> list:
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(do, ["in a thread", "in another"]))


def test_two_threads_with_the_first_question_share_a_session(server, monkeypatch):
    both, make = threading.Barrier(2), client._make_client

    def together(*args):
        both.wait()
        return make(*args)

    monkeypatch.setattr(client, "_make_client", together)
    judge, before = oracle(server), set(threading.enumerate())
    one, other = in_threads(lambda name: judge.client.session())
    assert one is other
    assert {*threading.enumerate()} - before == {one._thread}
    check(judge, "by two threads")
    judge.client.close()


def test_threads_share_the_rate(server):
    judge = oracle(server, requests_per_minute=1200, order="none")
    began = time.monotonic()
    in_threads(lambda name: list(judge.answers(named(f"rate {name}", 8))))
    assert time.monotonic() - began >= 15 * 0.05 - 1e-6


def test_threads_have_their_own_patience():
    with JudgeServer(always="status_503") as server:
        judge = oracle(server, order="none", retries=10**9, timeout=1.0, patience=1.0)
        judge.client.session()

        def silence(name: str) -> float:
            began = time.monotonic()
            with pytest.raises(OracleStoppedError, match="no answer for 1 s"):
                list(judge.answers(named(name)))
            return time.monotonic() - began

        assert min(in_threads(silence)) >= 1.0
        assert judge.state.silent == 0.0


def test_a_client_may_be_collected_in_its_own_thread(server):
    judges = [oracle(server)]
    check(judges[0], "to be collected")
    session = judges[0].client.session()
    session.loop.call_soon_threadsafe(judges.clear)
    session._thread.join()
    assert session.is_closed


@pytest.mark.slow  # a process of its own, with every warning an error
def test_nothing_is_left_open(server):
    code = f"""
        import gc, json, sys, threading
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from judge_server_oracles import oracle, questions
        sys.modules["nlhf_zoo.oracles.judge.client"]._CLOSING = 250.0  # seconds, on any machine
        class Server: url = {server.url!r}
        judge, other, cut = oracle(Server), oracle(Server), oracle(Server)
        for one in (judge, other):
            assert len(dict(one.answers(questions(4)))) == 4
        json.answers = cut.answers(questions(50))  # never read to its end; collected last of all
        next(json.answers)
        del other, one
        gc.collect()
        assert sum(thread.name == "nlhf judge" for thread in threading.enumerate()) == 2
        print("done")
    """
    options = "-X dev -W error -W ignore::DeprecationWarning -W ignore::FutureWarning"
    run = subprocess.run(
        [sys.executable, *options.split(), "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert run.stdout.strip() == "done", run.stderr
    # The interpreter's development mode tells of slow steps too, on a busy machine.
    told = [line for line in run.stderr.splitlines() if not line.startswith("Executing <")]
    assert told == [], run.stderr
