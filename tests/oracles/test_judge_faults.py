"""Judgements with faults: each answer is the right one or invalid, and each request is counted."""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from judge_server import LASTING, PASSING, JudgeServer, fault_of, rule
from judge_server_oracles import RETRIES, oracle, texts

from nlhf_zoo.records import Prompts

_CONNECTS: Counter[int] = Counter()
_HOOKED: list[bool] = []


def _count_connects(event: str, arguments: tuple) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        _CONNECTS[arguments[1][1]] += 1


@contextmanager
def connects(port: int) -> Iterator[Counter[int]]:
    """How often this process tries to connect to a port; what the server does not see as well."""
    if not _HOOKED:
        sys.addaudithook(_count_connects)  # it stays; it costs next to nothing
        _HOOKED.append(True)
    _CONNECTS[port] = 0
    yield _CONNECTS


@pytest.mark.parametrize(
    ("prompts", "concurrency"), [(6, 32), pytest.param(100, 128, marks=pytest.mark.slow)]
)
def test_faults(prompts: int, concurrency: int):
    """A third of what is shown meets a fault; see `fault_of` for the schedule."""
    seed, share, num = 7, 0.3, 10
    first, second = texts("a", prompts, num), texts("b", prompts, num)
    asked = Prompts(torch.arange(prompts), text=[f"prompt {number}" for number in range(prompts)])
    options = {"seed": seed, "faults": share, "retry_after": 0.05, "closed": 0.03}
    with JudgeServer(**options) as server, connects(server.port) as tried:
        judge = oracle(server, concurrency=concurrency, timeout=1.5)
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
