"""Oracles behind servers in this process, for tests: an event loop in a thread serves them all."""

import asyncio
import atexit
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.oracles.ledger import FIELDS, spent
from nlhf_zoo.oracles.served.server import OracleServer


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="servers of tests", daemon=True)
    thread.start()

    async def rest() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def end() -> None:
        asyncio.run_coroutine_threadsafe(rest(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    atexit.register(end)
    return loop


def in_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives in the loop of the servers."""
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()


def start(oracle: PreferenceOracle, token: str | None = None, port: int = 0) -> OracleServer:
    """A server of an oracle, which `stop` ends."""
    server = OracleServer(oracle, token)
    in_loop(server.start("127.0.0.1", port))
    return server


def stop(server: OracleServer) -> None:
    """End it as a signal does."""
    in_loop(server.close())


def url(server: OracleServer) -> str:
    """Where it is reached."""
    return f"http://127.0.0.1:{server.port}"


@contextmanager
def serving(oracle: PreferenceOracle, token: str | None = None) -> Iterator[str]:
    """The address of a server, within a ``with`` block."""
    server = start(oracle, token)
    try:
        yield url(server)
    finally:
        stop(server)


def forever(oracle: PreferenceOracle) -> str:
    """The address of a server that ends with the tests."""
    server = start(oracle)
    atexit.register(stop, server)
    return url(server)


def counts(oracle: PreferenceOracle) -> dict[str, int]:
    """What it was asked, but for the time that this took."""
    return {field: spent(oracle)[field] for field in FIELDS if field != "microseconds"}
