"""Judgements with faults: each answer is the right one or invalid, and each request is counted."""

import asyncio
import json
import math
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from judge_server import LASTING, PASSING, JudgeServer, fault_of, responses, rule
from judge_server_oracles import RETRIES, oracle, questions, texts
from judge_server_oracles import oracle as judge
from judges import prompts
from serving import counts, serving

from nlhf_zoo.errors import OracleStoppedError
from nlhf_zoo.oracles import BudgetedOracle, CachedOracle, ServedOracle
from nlhf_zoo.oracles.judge import client
from nlhf_zoo.records import Prompts

STALLED = ("timeout", "drip")  # what ends by the client's time-out only
_CONNECTS: Counter[int] = Counter()
_CLOSED: dict[int, Path] = {}
_HOOKED: list[bool] = []


def _count_connects(event: str, arguments: tuple) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        port = arguments[1][1]
        _CONNECTS[port] += 1
        if port in _CLOSED and _CLOSED[port].exists():  # refused: next it may be open again
            asyncio.get_running_loop().call_soon(_CLOSED[port].unlink, True)


@contextmanager
def connects(server: JudgeServer) -> Iterator[Counter[int]]:
    """How often this process tries to connect to a port; what the server does not see as well.

    A server that takes no connections does so until one was refused.
    """
    if not _HOOKED:
        sys.addaudithook(_count_connects)  # it stays; it costs next to nothing
        _HOOKED.append(True)
    _CONNECTS[server.port] = 0
    _CLOSED[server.port] = server.closed
    yield _CONNECTS
    del _CLOSED[server.port]


class Stalls:
    """How often the server has said that it will not reply to a question."""

    def __init__(self, server: JudgeServer) -> None:
        self.log, self.line = server.log.open(), ""
        self.counts: Counter[tuple[str, str]] = Counter()

    def __getitem__(self, shown: tuple[str, str]) -> int:
        while part := self.log.readline():
            self.line += part
            if self.line.endswith("\n"):
                entry, self.line = json.loads(self.line), ""
                if entry.get("fault") in STALLED:
                    self.counts[entry["first"], entry["second"]] += 1
        return self.counts[shown]


@contextmanager
def time_outs_of_what_is_stalled(server: JudgeServer, stalls_of) -> Iterator[None]:
    """The client's time-outs strike where the server does not reply, and nowhere else."""
    limits: dict[asyncio.Task, asyncio.Timeout] = {}
    stalls, post = Stalls(server), client.Session._post

    def timeout(seconds: float) -> asyncio.Timeout:
        assert seconds == 600.0
        task = asyncio.current_task()
        return limits.setdefault(task, asyncio.timeout(seconds))

    async def strike(limit: asyncio.Timeout, shown: tuple[str, str], before: int) -> None:
        while stalls[shown] == before:
            await asyncio.sleep(0.02)
        limit.reschedule(asyncio.get_running_loop().time())

    async def patched(self, body):
        shown = tuple(responses(body["messages"][-1]["content"]))
        limit = limits.pop(asyncio.current_task())
        if stalls_of(shown) not in STALLED:
            return await post(self, body)
        watch = asyncio.create_task(strike(limit, shown, stalls[shown]))
        try:
            return await post(self, body)
        finally:
            watch.cancel()

    with pytest.MonkeyPatch.context() as patch, stalls.log:
        patch.setattr(client, "asyncio", SimpleNamespace(**{**vars(asyncio), "timeout": timeout}))
        patch.setattr(client.Session, "_post", patched)
        yield


@pytest.mark.parametrize(
    ("prompts", "concurrency"), [(6, 32), pytest.param(100, 128, marks=pytest.mark.slow)]
)
def test_faults(prompts: int, concurrency: int):
    """A third of what is shown meets a fault; see `fault_of` for the schedule."""
    seed, share, num = 7, 0.3, 10
    first, second = texts("a", prompts, num), texts("b", prompts, num)
    asked = Prompts(torch.arange(prompts), text=[f"prompt {number}" for number in range(prompts)])
    options = {"seed": seed, "faults": share, "retry_after": 0.05}
    with JudgeServer(**options) as server, connects(server) as tried:
        judge = oracle(server, concurrency=concurrency)
        with time_outs_of_what_is_stalled(server, lambda shown: fault_of(seed, share, *shown)[0]):
            said = judge(asked, first, second)
            judge.client.close()
        log, accepted = server.entries(), len(server.entries("accepted"))
        unseen = tried[server.port] - accepted
    ledger = judge.ledger

    attempts: dict[tuple[str, str], list[str | None]] = defaultdict(list)
    for entry in log:
        attempts[entry["first"], entry["second"]].append(entry["fault"])
    pairs = [
        (first.text[b][k], second.text[b][one])
        for b in range(prompts) for k in range(num) for one in range(num)
    ]  # fmt: skip
    orders = [shown for pair in pairs for shown in (pair, pair[::-1])]
    assert attempts.keys() <= set(orders)

    # Who had a reply, and who was asked how often: from the server's log and the schedule alone.
    had = {}
    for shown in orders:
        faults = attempts[shown]
        name, times = fault_of(seed, share, *shown)
        assert len(faults) <= RETRIES + 1
        if None in faults:
            assert faults == [name] * times + [None]
            had[shown] = rule(*shown)
        else:
            assert set(faults) <= {name}
            assert len(faults) == 1 if name in LASTING else times > RETRIES or unseen
            had[shown] = math.nan
    wanted = [(had[a, b] + 1 - had[b, a]) / 2 for a, b in pairs]
    torch.testing.assert_close(
        torch.where(said.valid, said.preference, math.nan).flatten(),
        torch.tensor(wanted, dtype=torch.float64),
        equal_nan=True, rtol=0, atol=1e-9,
    )  # fmt: skip

    invalid = sum(map(math.isnan, wanted))
    seen = Counter(entry["fault"] for entry in log)
    completions = seen[None] + sum(seen[name] for name in LASTING if name != "status_400")
    assert ledger["requests"] == len(log) + unseen
    assert ledger["retries"] == ledger["requests"] - len(orders)
    assert ledger["queries"] == ledger["swapped"] == len(pairs)
    assert ledger["invalid"] == invalid == int((~said.valid).sum())
    assert ledger["prompt_tokens"] == 100 * completions
    assert ledger["reply_tokens"] == 7 * completions
    # The schedule was one: all faults occurred, connections were refused, and a third was hit.
    assert seen.keys() == {None, *PASSING, *LASTING}
    assert unseen >= 1
    hit = sum(fault_of(seed, share, *shown)[0] is not None for shown in orders) / len(orders)
    assert abs(hit - share) < 4 * math.sqrt(share * (1 - share) / len(orders))
    assert 0.1 < invalid / len(pairs) < 0.3


# ---- behind a server -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    with JudgeServer() as server:
        yield server


def test_a_judge_answers_and_counts_as_without_a_server(plain):
    """In both orders, and tokens too."""
    local, mine = judge(plain), texts("mine", 2, 5)
    expected = local(prompts("x", "y"), mine, mine)
    with serving(judge(plain)) as address:
        oracle = ServedOracle(address)
        found = oracle(prompts("x", "y"), mine, mine)
    assert torch.equal(found.valid, expected.valid)
    assert torch.equal(found.preference, expected.preference)
    assert counts(oracle) == counts(local)
    assert oracle.ledger["swapped"] == 20
    assert oracle.ledger["prompt_tokens"] > 0
    assert oracle.symmetric


def test_why_there_is_no_answer_is_handed_on():
    with JudgeServer(always="refusal") as refusing, serving(judge(refusing)) as address:
        oracle = ServedOracle(address)
        assert all(math.isnan(answer) for _, answer in oracle.answers(questions(2)))
    assert oracle.last_error.startswith("no verdict, for it is not one JSON object, but I'm sorry")


def test_a_budget_around_it_holds_and_swapped_calls_count(plain):
    with serving(judge(plain)) as address:
        oracle = BudgetedOracle(ServedOracle(address), max_requests=15)
        mine = texts("mine", 1, 4)
        oracle(prompts("x"), mine, mine)  # 6 questions in both orders
        oracle(prompts("y"), mine.take([0]), mine)
        assert oracle.spent()["max_requests"] == 24  # of what was asked nothing is lost
        with pytest.raises(OracleStoppedError, match="another would exceed max_requests"):
            oracle(prompts("z"), mine, mine)
        assert oracle.spent()["max_requests"] == 24


def test_two_that_ask_at_once_count_what_is_theirs(plain):
    """A judge is asked for both at once, and each knows what its own questions have cost."""
    asked = questions(40)
    with JudgeServer(hold=40) as there, serving(judge(there, concurrency=20)) as address:
        oracles = [ServedOracle(address) for _ in range(2)]
        found = [{}, {}]

        def ask(rank):  # no reply until both have 20 requests on their way
            found[rank].update(oracles[rank].answers(asked[rank::2]))

        threads = [threading.Thread(target=ask, args=[rank]) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [oracle.ledger["queries"] for oracle in oracles] == [20, 20]
        assert [oracle.ledger["requests"] for oracle in oracles] == [40, 40]
        assert len(there.entries()) == 80
    expected = dict(judge(plain).answers(asked))
    assert [expected[2 * n + rank] for rank in range(2) for n in range(20)] == [
        found[rank][n] for rank in range(2) for n in range(20)
    ]


def test_a_cache_on_the_server_is_asked_once_by_two(tmp_path):
    """No reply until all 24 requests are on their way, and no other request ever comes."""
    with JudgeServer(hold=24) as there:
        cache = CachedOracle(judge(there), tmp_path / "answers.sqlite")
        with serving(cache) as address:
            oracles = [ServedOracle(address) for _ in range(2)]
            found = [{}, {}]

            def ask(rank):
                found[rank].update(oracles[rank].answers(questions(12)))

            threads = [threading.Thread(target=ask, args=[rank]) for rank in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(there.entries()) == 24
    assert found[0] == found[1]
    assert sum(oracle.ledger["queries"] for oracle in oracles) == 12
    assert sum(oracle.ledger["cache_hits"] for oracle in oracles) == 12
