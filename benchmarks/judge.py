"""Judgements a second by ``JudgeOracle``, against the ideal of a server that is always busy.

    python -m benchmarks.judge [--repeats 5] [--judgements 2000] [--concurrency 32] [--delay 0.05]

The server, of the tests, runs in a process of its own and answers each request after the delay. The
ideal is judgements x delay / concurrency. In turn with it two others are timed that send the same
requests from one event loop in the main thread: the `openai` client as its documentation has it,
and the HTTP client below it alone. Connections and imports are made before the clock starts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

from nlhf_zoo.oracles.judge.oracle import JudgeOracle
from nlhf_zoo.oracles.text_oracle import Question

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from judge_server import JudgeServer

TARGET = 1.2


def questions(num: int) -> list[Question]:
    """Responses of about a hundred words."""
    said = [{"role": "user", "content": "Which is better?"}]
    return [
        Question(said, f"first {number}" + " word" * 100, f"second {number}" + " word" * 100)
        for number in range(num)
    ]


def ours(judge: JudgeOracle, asked: list[Question]) -> float:
    """Seconds of the oracle, shown orders one by one."""
    start = time.perf_counter()
    answers = dict(judge.in_given_order(asked))
    seconds = time.perf_counter() - start
    assert len(answers) == len(asked)
    return seconds


async def workers(num: int, concurrency: int, one: Callable[[int], Awaitable[object]]) -> float:
    """Seconds of a plain loop of workers."""
    start = time.perf_counter()
    numbers = iter(range(num))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return time.perf_counter() - start


async def by_client(url: str, bodies: list[dict], concurrency: int) -> float:
    """Seconds of the `openai` client."""
    import openai

    async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:

        async def one(number: int) -> object:
            return await client.chat.completions.create(**bodies[number])

        await workers(concurrency, concurrency, one)
        return await workers(len(bodies), concurrency, one)


async def by_http(url: str, bodies: list[dict], concurrency: int) -> float:
    """Seconds of the HTTP client."""
    import openai

    async with openai.DefaultAioHttpClient() as client:

        async def one(number: int) -> object:
            return (await client.post(f"{url}/chat/completions", json=bodies[number])).json()

        await workers(concurrency, concurrency, one)
        return await workers(len(bodies), concurrency, one)


def run() -> None:
    """Measure in turn and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--judgements", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--delay", type=float, default=0.05)
    arguments = parser.parse_args()
    num, concurrency = arguments.judgements, arguments.concurrency
    asked = questions(num)
    ideal = num * arguments.delay / concurrency
    times: dict[str, list[float]] = {"JudgeOracle": [], "openai client": [], "HTTP client": []}
    with JudgeServer(delay=arguments.delay) as server:
        judge = JudgeOracle("small", server.url, api_key_env=None, concurrency=concurrency)
        bodies = [judge._body(question) for question in asked]
        ours(judge, asked[:concurrency])
        before = os.times()
        for _ in range(arguments.repeats):
            times["JudgeOracle"].append(ours(judge, asked))
            times["openai client"].append(asyncio.run(by_client(server.url, bodies, concurrency)))
            times["HTTP client"].append(asyncio.run(by_http(server.url, bodies, concurrency)))
        after = os.times()
    busy = (after.user + after.system - before.user - before.system) / (
        after.elapsed - before.elapsed
    )
    print(f"openai {version('openai')}, {num} judgements, {concurrency} at once, median of")
    print(f"{arguments.repeats}; this process used {busy:.2f} cores, load {os.getloadavg()[0]:.1f}")
    print(f"of {os.cpu_count()} cores; ideal {ideal:.2f} s\n")
    print("| who | seconds | ratio to the ideal | least | target |\n|---|---|---|---|---|")
    for name, seconds in times.items():
        middle, least = statistics.median(seconds), min(seconds)
        target = TARGET if name == "JudgeOracle" else ""
        print(f"| {name} | {middle:.2f} | {middle / ideal:.2f} | {least / ideal:.2f} | {target} |")


if __name__ == "__main__":
    run()
