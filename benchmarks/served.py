"""Two processes that ask one served judge, against two that have a judge each.

    python -m benchmarks.served [--repeats 5] [--batches 20] [--questions 32] [--concurrency 8]

The judge is a server of the tests, which answers each request after 50 ms. Each of two processes
asks it about batches of questions, one batch after the other, as a training run does; by a
`JudgeOracle` of its own, and by a `ServedOracle` whose server, in a process of its own, has one.
Both ways take turns between the same processes; a turn ends when both have all answers. Connections
and imports are made before the clock starts.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from nlhf_zoo.oracles import JudgeOracle, ServedOracle
from nlhf_zoo.oracles.served.server import OracleServer
from nlhf_zoo.oracles.text_oracle import Question, TextOracle

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from judge_server import JudgeServer

TARGET = 1.1
RANKS = 2
_SPAWN = multiprocessing.get_context("spawn")


def questions(rank: int, batch: int, num: int) -> list[Question]:
    """Responses of about a hundred words."""
    said = [{"role": "user", "content": f"Which is better, {rank}?"}]
    return [
        Question(said, f"first {batch} {one}" + " word" * 100, f"second {one}" + " word" * 100)
        for one in range(num)
    ]


def judge(url: str, concurrency: int) -> JudgeOracle:
    """A judge that is asked once about each question."""
    return JudgeOracle("small", url, api_key_env=None, order="none", concurrency=concurrency)


def serve(url: str, concurrency: int, said: Connection) -> None:
    """A process that serves a judge until it is told to end."""

    async def run() -> None:
        server = OracleServer(judge(url, concurrency))
        await server.start("127.0.0.1", 0)
        said.send(server.port)
        await asyncio.to_thread(said.recv)
        await server.close()

    asyncio.run(run())


def ask(rank: int, url: str, served: str, concurrency: int, num: int, told: Connection) -> None:
    """A process that asks, in the way and for as many batches as it is told."""
    oracles: dict[str, TextOracle] = {
        "own": judge(url, concurrency), "served": ServedOracle(served)
    }  # fmt: skip
    while (order := told.recv()) is not None:
        way, batches = order
        for batch in range(batches):
            answers = dict(oracles[way].answers(questions(rank, batch, num)))
            assert len(answers) == num
        told.send(None)


def run() -> None:
    """Measure in turn and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--delay", type=float, default=0.05)
    given = parser.parse_args()
    times: dict[str, list[float]] = {"own": [], "served": []}
    with JudgeServer(delay=given.delay) as there:
        said, says = _SPAWN.Pipe()
        server = _SPAWN.Process(target=serve, args=(there.url, given.concurrency, says))
        server.start()
        served = f"http://127.0.0.1:{said.recv()}"
        pipes, ranks = [], []
        for rank in range(RANKS):
            mine, theirs = _SPAWN.Pipe()
            options = (there.url, served, given.concurrency, given.questions, theirs)
            ranks.append(_SPAWN.Process(target=ask, args=(rank, *options)))
            ranks[-1].start()
            pipes.append(mine)

        def turn(way: str, batches: int) -> float:
            began = time.perf_counter()
            for pipe in pipes:
                pipe.send((way, batches))
            for pipe in pipes:
                pipe.recv()
            return time.perf_counter() - began

        for way in times:
            turn(way, 1)
        for _ in range(given.repeats):
            for way, seconds in times.items():
                seconds.append(turn(way, given.batches))
        for pipe in pipes:
            pipe.send(None)
        said.send(None)
        for process in (*ranks, server):
            process.join()
    ideal = given.batches * given.delay * -(-given.questions // given.concurrency)
    print(f"{RANKS} processes, {given.batches} batches of {given.questions} questions each,")
    print(f"{given.concurrency} at once, {1e3 * given.delay:g} ms a question; median of")
    print(
        f"{given.repeats}; load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores; ideal", end=""
    )
    print(
        f" {ideal:.2f} s\n\n| a judge in each, s | one that is served, s | ratio | least | target |"
    )
    print("|---|---|---|---|---|")
    ratios = [one / other for one, other in zip(times["served"], times["own"], strict=True)]
    own, shared = (statistics.median(times[way]) for way in ("own", "served"))
    ratio, least = statistics.median(ratios), min(ratios)
    print(f"| {own:.2f} | {shared:.2f} | {ratio:.3f} | {least:.3f} | {TARGET} |")


if __name__ == "__main__":
    run()
