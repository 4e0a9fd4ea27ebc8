"""The server of an oracle: `aiohttp`, in an event loop, and threads that ask."""

from __future__ import annotations

import asyncio
import hmac
import logging
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, final
from urllib.parse import urlsplit

from nlhf_zoo.errors import OracleStoppedError
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.served.address import is_loopback, refuse_host
from nlhf_zoo.oracles.served.batches import AskedBatch, BatchDesk
from nlhf_zoo.oracles.served.description import described
from nlhf_zoo.oracles.served.protocol import (
    BATCHES,
    DESCRIPTION,
    LONGEST_BODY,
    PROTOCOL,
    WAIT,
    of_bytes,
    to_bytes,
)

if TYPE_CHECKING:
    from aiohttp import web

_TOO_LONG = f"a body of more than {LONGEST_BODY} bytes"
_BODY = 60.0  # seconds in which the body of a request must be there
_LAST = 5.0  # seconds in which the last answers may be fetched when the server ends
_LOOK = 0.01  # seconds between looks whether they were


@final
class OracleServer:
    """Serves an oracle by HTTP; `nlhf serve-oracle` runs one.

    What it says to whom is in `nlhf_zoo.oracles.served.protocol`. A request without the token is
    answered by status 401 before its body is read. Nothing of a request is logged.

    Args:
        oracle: who is asked.
        token: that each request must have; None for none, on this machine alone.

    Raises:
        UserError: the oracle cannot be served.
    """

    def __init__(self, oracle: PreferenceOracle, token: str | None = None) -> None:
        oracle.eval().requires_grad_(False)
        self.description = described(oracle)
        self._token = token
        self._desk = BatchDesk(oracle)
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Args:
            host: a name or an address of this machine.
            port: 0 takes a free one, which `port` is then.

        Raises:
            UserError: the host can be reached by strangers.
            OSError: the place is taken, or is none of this machine's.
        """
        from aiohttp import web

        refuse_host(host, self._token is not None)
        app = web.Application(client_max_size=LONGEST_BODY, middlewares=[self._answered()])
        app.router.add_get(DESCRIPTION, self._describe)
        app.router.add_post(BATCHES, self._ask)
        silent = logging.getLogger(f"{__name__}.silent")  # a request that is none may hold a token
        silent.disabled = True
        runner = web.AppRunner(
            app, access_log=None, logger=silent, handle_signals=False, shutdown_timeout=_LAST
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = runner.addresses[0][1]

    async def close(self) -> None:
        """Put no more questions, let those under way be answered and fetched, and end."""
        self._desk.refuse_more()
        waiting = [
            asyncio.wrap_future(batch.future)
            for batch in self._desk.open_batches
            if batch.future is not None
        ]
        if waiting:
            await asyncio.wait(waiting)
        if self._runner is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST):
                    while not self._desk.all_fetched:
                        await asyncio.sleep(_LOOK)
            await self._runner.cleanup()
        self._desk.close()

    # ---- requests ----

    def _answered(self) -> Any:
        """What stands before all handlers: who may ask; and each error as JSON."""
        from aiohttp import web

        @web.middleware
        async def answered(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            if (refusal := self._refusal(request)) is not None:
                return refusal
            try:
                return await handler(request)
            except web.HTTPException as error:
                return _error(error.status, _TOO_LONG if error.status == 413 else error.reason)
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                return _error(500, f"its server has met {type(error).__name__}")

        return answered

    def _refusal(self, request: web.Request) -> web.Response | None:
        """The reply to who may not ask."""
        if self._token is not None:
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
                return _error(401, "another token than the server's, or none")
        elif not is_loopback(urlsplit(f"//{request.host}").hostname or ""):
            # A page in a browser on this machine may ask by a name of its own for this machine.
            return _error(403, "a name of another machine, and the server has no token")
        return None

    async def _describe(self, _: web.Request) -> web.Response:
        return _reply(200, self.description.to_json())

    async def _ask(self, request: web.Request) -> web.Response:
        if (request.content_length or 0) > LONGEST_BODY:  # one without a length is read so far
            return _error(413, _TOO_LONG)
        # Other types a browser sends for any page, without asking first.
        if request.content_type != "application/json":
            return _error(415, "a body that is not application/json")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            return _error(415, "a body that is compressed")
        try:
            async with asyncio.timeout(_BODY):
                content = of_bytes(await request.read())
            if not isinstance(content, dict) or content.get("protocol") != PROTOCOL:
                return _error(400, f"a request that is not of version {PROTOCOL} of the protocol")
            if content.get("fingerprint") != self.description.fingerprint:
                return _error(409, "it serves another oracle")
            batch = self._desk.take(content)
        except TimeoutError:
            return _error(408, f"no whole body within {_BODY:g} s")
        except OracleStoppedError as error:
            return _error(503, str(error))
        except LookupError as error:
            return _error(410, str(error))
        except (ValueError, TypeError) as error:
            return _error(400, f"no batch, for {error}")
        have = content.get("have", 0)
        await self._end_of(batch)
        said = batch.reply(have if type(have) is int and have >= 0 else 0)
        return _reply(200, said)

    async def _end_of(self, batch: AskedBatch) -> None:
        """Wait for a batch, for a while; a request that goes away takes nothing with it."""
        if batch.future is not None:
            await asyncio.wait([asyncio.wrap_future(batch.future)], timeout=WAIT)


def _reply(status: int, content: dict[str, Any]) -> web.Response:
    from aiohttp import web

    return web.Response(status=status, body=to_bytes(content), content_type="application/json")


def _error(status: int, words: str) -> web.Response:
    return _reply(status, {"error": words})
