"""Requests to a judge, in a thread with an event loop of its own, by the `openai` client."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, final

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.judge.endpoint import SHOWN, Endpoint, presentable
from nlhf_zoo.oracles.judge.forms import Form
from nlhf_zoo.oracles.judge.reply import Completion, read_models

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_CLOSING = 5.0  # seconds that open connections have to end
LONGEST_REPLY = 2**24  # bytes; twenty log-probabilities for each of ten thousand tokens fit
# Of the moment: the same request may succeed later. So may all from 500 on.
PASSING = frozenset({408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class Failure:
    """No completion."""

    message: str  # what went wrong, in the server's words where it had any; without the key
    status: int | None = None  # of HTTP; None where nothing came, or not all of it
    retry_after: float | None = None  # seconds, where the server says when to ask again
    unreachable: bool = False  # there was no connection: the server has seen nothing of it
    unreadable: bool = False  # the reply is none that is read, and would be the same again

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        if self.unreadable:
            return False
        return self.status is None or self.status in PASSING or self.status >= 500


@final
class JudgeClient:
    """Sends requests to one endpoint.

    Its thread starts with the first request and lives on, with its connections, until the client is
    collected or the interpreter ends. A copy, an unpickled one, and one in a forked process start
    their own. It keeps no key: that is read from the environment when the thread starts.

    Args:
        endpoint: the server.
        timeout: seconds for a whole request, from its start to the last byte of its reply.
        form: in which questions are put.

    Raises:
        UserError: the `openai` client is not installed.
    """

    def __init__(self, endpoint: Endpoint, timeout: float, form: Form) -> None:
        if importlib.util.find_spec("openai") is None:  # imported with the first request only
            raise UserError("JudgeOracle needs the openai client: pip install 'nlhf_zoo[judge]'")
        self.endpoint = endpoint
        self.timeout = timeout
        self.form = form
        self._sessions: dict[int, Session] = {}  # of this process, and of those it was forked from

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_sessions": {}}

    def session(self) -> Session:
        """The running session of this process; started if there is none.

        Raises:
            UserError: the environment variable of the key is not set.
        """
        if (session := self._sessions.get(os.getpid())) is None:
            new = Session(self.endpoint, self.timeout, self.form)
            # Several threads may have the first question.
            session = self._sessions.setdefault(new.pid, new)
            weakref.finalize(self, new.close)
            if session is not new:
                new.close()
            elif new.key is not None:
                self.endpoint.announce()
        return session

    def presentable(self, words: str, most: int = SHOWN) -> str:
        """What a server said, for a message of so many characters."""
        session = self._sessions.get(os.getpid())
        key = session.key if session else os.environ.get(self.endpoint.api_key_env or "")
        return presentable(words, key, most)

    def ask_once(self, body: Mapping[str, Any]) -> Completion | Failure:
        """What comes of one request, without another attempt; nothing is counted here.

        Raises:
            UserError: the environment variable of the key is not set.
        """
        session = self.session()
        return asyncio.run_coroutine_threadsafe(session.post(body), session.loop).result()

    def models(self) -> Sequence[str] | Failure:
        """Names of the models that the server lists, which costs nothing.

        Raises:
            UserError: the environment variable of the key is not set.
        """
        session = self.session()
        return asyncio.run_coroutine_threadsafe(session.models(), session.loop).result()

    def close(self) -> None:
        """End the thread and its connections; the next request starts another."""
        if (session := self._sessions.pop(os.getpid(), None)) is not None:
            session.close()


@final
class Session:
    """An event loop in a thread of this process, and the `openai` client within.

    Raises:
        UserError: the environment variable of the key is not set.
    """

    def __init__(self, endpoint: Endpoint, timeout: float, form: Form) -> None:
        self.pid = os.getpid()
        self.key = endpoint.key()
        self.timeout = timeout
        self.form = form
        self._client, self._options = _make_client(endpoint, self.key)
        self.loop = asyncio.new_event_loop()
        self.is_closed = False
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="nlhf judge", daemon=True)
        self._thread.start()

    async def post(self, body: Mapping[str, Any]) -> Completion | Failure:
        """Send a request for a completion, in the event loop."""
        reply = await self._outcome(self._post(body))
        if isinstance(reply, Failure):
            return reply
        if (completion := self.form.read(reply)) is not None:
            return completion
        words = presentable(_server_message(reply), self.key) or "nothing"
        return Failure(f"no completion, but {words}")

    async def models(self) -> Sequence[str] | Failure:
        """Ask for the names of the server's models, in the event loop."""
        reply = await self._outcome(
            self._client.get("/models", cast_to=bytes, options=self._options)
        )
        if isinstance(reply, Failure):
            return reply
        if (names := read_models(reply)) is not None:
            return names
        return Failure("no list of models")

    def close(self) -> None:
        """End the thread; it closes what is open."""
        if self.pid != os.getpid():  # a forked process: the thread is not in it
            return
        self.is_closed = True
        with suppress(RuntimeError):  # the event loop has ended
            self.loop.call_soon_threadsafe(self._ended.set)
        if threading.current_thread() is not self._thread:  # the collector runs in any thread
            self._thread.join(_CLOSING)

    async def _outcome(self, request: Awaitable[bytes]) -> bytes | Failure:
        """The bytes of a whole reply, or what became of the request."""
        try:
            async with asyncio.timeout(self.timeout):
                return await request
        except TimeoutError:
            return Failure(f"no whole reply within {self.timeout:g} s")
        except Exception as error:
            return _failure(error, self.key)

    async def _post(self, body: Mapping[str, Any]) -> bytes:
        """The bytes of the reply, without the objects that `create` would make of them."""
        return await self._client.post(
            self.form.path, cast_to=bytes, body=body, options=self._options
        )

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        await self._ended.wait()
        requests = asyncio.all_tasks() - {asyncio.current_task()}
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        await self._client.close()


def _make_client(endpoint: Endpoint, key: str | None) -> tuple[AsyncOpenAI, Any]:
    """A client that takes nothing from the environment but a proxy, and options of a request."""
    import openai

    headers: dict[str, Any] = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",  # a few compressed bytes may be gigabytes
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
        timeout=None,  # `post` limits the whole, not each of its parts
        # By aiohttp: a third less work for each request than the client's own default.
        http_client=openai.DefaultAioHttpClient(
            timeout=None,
            follow_redirects=False,
            trust_env=not endpoint.is_local,
            event_hooks={"response": [_limit]},  # of errors, too
        ),
    )
    return client, {} if key else {"headers": {"Authorization": openai.Omit()}}


class _UnreadableError(Exception):
    """A reply that is too long, or compressed."""


async def _limit(response: Any) -> None:
    """Let no more of a reply be read than one may be long."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise _UnreadableError(f"a reply in the encoding {encoding}, which was not asked for")
    kind: Any = type(response.stream)
    response.stream = _limited(kind)(response.stream)


@functools.cache
def _limited(kind: Any) -> Any:
    """What the client takes for a stream of a kind, and ends where it is too long."""

    class Limited(kind):  # type: ignore[misc]  # of the library that `openai` uses, httpx or httpx2
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for part in self.stream:
                size += len(part)
                if size > LONGEST_REPLY:
                    raise _UnreadableError(f"a reply of more than {LONGEST_REPLY} bytes")
                yield part

        async def aclose(self) -> None:
            await self.stream.aclose()

    return Limited


def _failure(error: Exception, key: str | None) -> Failure:
    """What an exception of the client's means; one that is no fault of the server's is raised."""
    import aiohttp
    import openai

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    if isinstance(causes[-1], _UnreadableError):
        return Failure(presentable(str(causes[-1]), key), unreadable=True)
    if isinstance(error, openai.APIStatusError):
        response = error.response
        said = _server_message(response.content)
        message = presentable(said, key) or presentable(response.reason_phrase, key)
        wait = retry_after(response.headers.get("retry-after"), time.time())
        return Failure(f"status {error.status_code}, {message}", error.status_code, wait)
    # Some exceptions of aiohttp's are passed on as they are.
    if isinstance(error, openai.APIConnectionError | aiohttp.ClientError):
        message = presentable(f"{type(causes[-1]).__name__} {causes[-1]}", key)
        refused = (ConnectionRefusedError, aiohttp.ClientConnectorError)
        return Failure(message, unreachable=any(isinstance(one, refused) for one in causes))
    raise error


def _server_message(body: bytes) -> str:
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
    """Seconds until a server wants to be asked again, by the value of its header Retry-After.

    That is in seconds, or a date; ``now`` is in seconds since the epoch.

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
