"""Requests to a server of vLLM, many at a time; its key is never shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from nlhf_zoo.errors import UserError, cause

_ATTEMPTS = 3  # a request with a seed may be put again
_PAUSE = 1.0  # seconds between them
_BUSY = frozenset({408, 429, 502, 503, 504})
_SHOWN = 200  # characters of what a server says
_PART = 6  # characters of a key that may not be shown either


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    content: Any  # of JSON; else its text
    said: str  # of an error, on one line


@dataclass(frozen=True, slots=True)
class Client:
    """Asks one server.

    Args:
        base_url: its address, with /v1.
        key: that it asks for.
        concurrency: requests at a time.
        timeout: seconds that an answer may take.
    """

    base_url: str
    key: str | None = field(repr=False)
    concurrency: int
    timeout: float

    @property
    def where(self) -> str:
        """Scheme and host, as messages name the server."""
        parts = urlsplit(self.base_url)
        return f"{parts.scheme}://{parts.netloc}"

    async def ask_all(self, path: str, bodies: Sequence[Mapping[str, Any] | None]) -> list[Reply]:
        """Put all requests, and return their answers in order; without a body it is a GET.

        Raises:
            UserError: the server cannot be reached, or does not answer in time.
        """
        import aiohttp

        connector = aiohttp.TCPConnector(limit=self.concurrency)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=self.timeout)
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers
        ) as session:
            asked = [asyncio.ensure_future(self._ask(session, path, body)) for body in bodies]
            try:
                return list(await asyncio.gather(*asked))
            finally:
                for one in asked:
                    one.cancel()

    async def _ask(self, session: Any, path: str, body: Mapping[str, Any] | None) -> Reply:
        import aiohttp

        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            try:
                reply = await self._once(session, path, body)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if last:
                    slow = isinstance(error, TimeoutError)
                    what = f"does not answer within {self.timeout:g} s" if slow else "is not there"
                    raise UserError(
                        f"the server of vLLM at {self.where} {what} "
                        f"({type(error).__name__}: {self._shown(cause(error))}): start it, or set "
                        "model.policy.generator.base_url"
                    ) from None
            else:
                if last or reply.status not in _BUSY:
                    return reply
            await asyncio.sleep(_PAUSE)
        raise AssertionError

    async def _once(self, session: Any, path: str, body: Mapping[str, Any] | None) -> Reply:
        method = "GET" if body is None else "POST"
        url = f"{self.base_url}/{path}"
        async with session.request(method, url, json=body, allow_redirects=False) as reply:
            raw = await reply.read()
        text = raw.decode(errors="replace")
        try:
            content = json.loads(text)
        except ValueError:
            content = text
        said = ""
        if reply.status != 200:
            error = content.get("error") if isinstance(content, dict) else None
            said = self._shown(str(error.get("message") if isinstance(error, dict) else text))
        return Reply(reply.status, content, said)

    def _shown(self, text: str) -> str:
        """A part of a message, on one line; nothing where it holds a part of the key."""
        text = " ".join(text.split())
        text = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
        if self.key is not None:
            parts = (self.key[i : i + _PART] for i in range(max(1, len(self.key) - _PART + 1)))
            if any(part in text for part in parts):
                return "a message that holds a part of the key"
        return text
