"""Requests to a judge, in a thread with an event loop of its own, by the `openai` client."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, final

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.judge.endpoint import Endpoint, presentable

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_STARTING = threading.Lock()
_CLOSING = 5.0  # seconds that open connections have to end

# Of one question: the same request would be refused again.
REFUSED = frozenset({400, 413, 422})
# Of the moment: the same request may succeed later. So may all from 500 on.
PASSING = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply with status 200, whole as HTTP has it.

    Args:
        body: what the server sent.
    """

    body: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """No reply that could be read.

    Args:
        said: what went wrong, in the server's words where it had any; without the key.
        status: of HTTP; None where nothing came, or not all of it.
        wait: seconds after which the server wants to be asked again, where it says so.
        unreachable: whether there was no connection, so that the server has seen nothing of it.
    """

    said: str
    status: int | None = None
    wait: float | None = None
    unreachable: bool = False


Outcome = Reply | Failure | BaseException
Deliver = Callable[[int, Outcome], None]


@final
class JudgeClient:
    """Sends requests to one endpoint.

    Its thread starts with the first request and lives on, with its connections, until the client is
    collected or the interpreter ends. A copy, an unpickled one, and one in a forked process start
    their own. It keeps no key: that is read from the environment when the thread starts.

    Args:
        endpoint: where the judge is.
        timeout: seconds for a whole request, from its start to the last byte of its reply.

    Raises:
        UserError: the `openai` client is not installed.
    """

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        if importlib.util.find_spec("openai") is None:  # imported with the first request only
            raise UserError("JudgeOracle needs the openai client: pip install 'nlhf_zoo[judge]'")
        self.endpoint = endpoint
        self.timeout = timeout
        self._running: _Running | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_running": None}

    def start(self) -> None:
        """Start the thread, unless it runs.

        Raises:
            UserError: the environment variable of the key is not set.
        """
        with _STARTING:  # several threads may have the first question
            if self._running is not None and self._running.pid == os.getpid():
                return
            if self._running is not None:
                self._running.close()
            self._running = _Running(self.endpoint)
            weakref.finalize(self, self._running.close)

    def send(self, requests: Iterable[tuple[int, Mapping[str, Any]]], deliver: Deliver) -> None:
        """Send requests; the outcome of each is delivered from the thread of the event loop.

        Args:
            requests: numbers that are free, and bodies.
            deliver: called with a number and its outcome.
        """
        self.start()
        assert self._running is not None
        self._running.send(requests, deliver, self.timeout)

    def cancel(self, deliver: Deliver) -> None:
        """Give up all requests whose outcome goes there."""
        if self._running is not None:
            self._running.cancel(deliver)

    def presentable(self, body: bytes) -> str:
        """What a server sent, for a message."""
        return presentable(_words(body), self._running.key if self._running else None)

    def close(self) -> None:
        """End the thread and its connections; the next request starts another."""
        if self._running is not None:
            self._running.close()
            self._running = None


@final
class _Loop(asyncio.SelectorEventLoop):
    """An event loop that knows its connections.

    Clients lose one whose request is cancelled at the moment in which it was made: nobody but the
    event loop could then close it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: set[asyncio.Transport] = set()

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        """As its base, and the transport is remembered."""
        transport, protocol = await super().create_connection(*args, **kwargs)
        self._made = {one for one in self._made if not one.is_closing()} | {transport}
        return transport, protocol

    def abort_transports(self) -> None:
        """Close the sockets of all connections, in the next turn."""
        for transport in self._made:
            transport.abort()
        self._made.clear()


@final
class _Running:
    """An event loop in its thread, and the `openai` client within."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.pid = os.getpid()
        self.key = endpoint.key()
        self.client, self.options = _make_client(endpoint, self.key)
        self.loop = _Loop()
        self.tasks: dict[asyncio.Task[None], Deliver] = {}
        self.thread = threading.Thread(target=self._run, name="nlhf judge", daemon=True)
        self.thread.start()

    def send(
        self, requests: Iterable[tuple[int, Mapping[str, Any]]], deliver: Deliver, timeout: float
    ) -> None:
        def begin() -> None:
            for number, body in requests:
                task = self.loop.create_task(self._request(number, body, deliver, timeout))
                self.tasks[task] = deliver
                task.add_done_callback(self.tasks.pop)

        self.loop.call_soon_threadsafe(begin)

    def cancel(self, deliver: Deliver) -> None:
        def end() -> None:
            for task, to in list(self.tasks.items()):
                if to == deliver:
                    task.cancel()

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(end)

    def close(self) -> None:
        """End the thread; it closes what is open."""
        if self.pid != os.getpid():
            _LEFT_TO_PARENT.append(self)
            return
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        if threading.current_thread() is not self.thread:  # the collector runs in any thread
            self.thread.join(_CLOSING)

    def _run(self) -> None:
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(asyncio.wait_for(self._end(), _CLOSING))
        finally:
            self.loop.close()

    async def _end(self) -> None:
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.close()
        await self.loop.shutdown_default_executor()
        self.loop.abort_transports()
        await asyncio.sleep(0.01)  # their sockets are closed in the event loop's next turn

    async def _request(
        self, number: int, body: Mapping[str, Any], deliver: Deliver, timeout: float
    ) -> None:
        outcome: Outcome
        try:
            async with asyncio.timeout(timeout):
                outcome = Reply(await self._post(body))
        except asyncio.CancelledError:
            raise
        except TimeoutError:
            outcome = Failure(f"no whole reply within {timeout:g} s")
        except Exception as error:
            outcome = _failure(error, self.key)
        deliver(number, outcome)

    async def _post(self, body: Mapping[str, Any]) -> bytes:
        """The bytes of the reply, without the objects that `create` would make of them."""
        return await self.client.post(
            "/chat/completions", cast_to=bytes, body=body, options=self.options
        )


# The lock may be held in the parent when it forks.
os.register_at_fork(after_in_child=lambda: globals().update(_STARTING=threading.Lock()))

# In a forked process: the parent's event loop, whose files the two share. Closing it here, as the
# collector would, would take the parent's connections out of the parent's own loop.
_LEFT_TO_PARENT: list[_Running] = []


def _make_client(endpoint: Endpoint, key: str | None) -> tuple[AsyncOpenAI, Any]:
    """A client that takes nothing from the environment but a proxy, and options of a request."""
    import openai

    headers: dict[str, Any] = {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "User-Agent": "nlhf_zoo",
        "Authorization": f"Bearer {key}",
    }

    class Client(openai.AsyncOpenAI):
        """Sends these headers only: no organisation, project or header of the environment's."""

        @property
        def default_headers(self) -> dict[str, Any]:
            return headers

    client = Client(
        api_key=key or "none",
        organization="",
        project="",
        webhook_secret="",
        base_url=endpoint.base_url,
        max_retries=0,  # ours are counted, and can end with a budget
        timeout=None,  # `_request` limits the whole, not each of its parts
        # By aiohttp: a third less work for each request than the client's own default.
        http_client=openai.DefaultAioHttpClient(
            timeout=None, follow_redirects=False, trust_env=not endpoint.is_local
        ),
    )
    return client, {} if key else {"headers": {"Authorization": openai.Omit()}}


def _failure(error: Exception, key: str | None) -> Outcome:
    """What an exception of the client's means."""
    import aiohttp
    import openai

    if isinstance(error, openai.APIStatusError):
        response = error.response
        said = presentable(_words(response.content), key) or response.reason_phrase
        wait = retry_after(response.headers.get("retry-after"), time.time())
        return Failure(f"status {error.status_code}, {said}", error.status_code, wait)
    # Some exceptions of aiohttp's are passed on as they are.
    if isinstance(error, openai.APIConnectionError | aiohttp.ClientError):
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__) is not None:
            causes.append(cause)
        said = presentable(f"{type(causes[-1]).__name__} {causes[-1]}", key)
        refused = (ConnectionRefusedError, aiohttp.ClientConnectorError)
        return Failure(said, unreachable=any(isinstance(one, refused) for one in causes))
    return error  # a bug, not a fault of the server's


def _words(body: bytes) -> str:
    """The message of an error in a body; the body itself where it has none."""
    text = body.decode("utf-8", "replace")
    try:
        error = json.loads(text)
        error = error.get("error", error)
        message = error if isinstance(error, str) else error.get("message")
    except (ValueError, AttributeError, RecursionError):
        return text
    return message if isinstance(message, str) else text


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds until a server wants to be asked again.

    Args:
        value: of the header Retry-After: seconds, or a date.
        now: seconds since the epoch.

    Examples:
        >>> retry_after("2.5", 0.0)
        2.5
        >>> retry_after("Thu, 01 Jan 1970 00:00:07 GMT", 4.0)
        3.0
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None  # not NaN
