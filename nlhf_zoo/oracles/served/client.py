"""Asking the server of an oracle: one request at a time, again where that may help."""

from __future__ import annotations

import http.client
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles.judge.endpoint import presentable
from nlhf_zoo.oracles.served.address import TokenSource, announce, refuse_url
from nlhf_zoo.oracles.served.protocol import (
    BATCHES,
    DESCRIPTION,
    KEPT,
    PROTOCOL,
    WAIT,
    Description,
    Kind,
    of_bytes,
    to_bytes,
)

LONGEST_REPLY = 2**28  # bytes, but for what the description announces: 256 MiB
_START = 10.0  # seconds in which a server must be there when a run begins
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds before another attempt; doubled each time
_PASSING = frozenset({408, 429, 502, 504})


class _UnreachedError(Exception):
    """No reply, or none that can be read: the same request may have one later."""


@dataclass
class ServedClient:
    """Sends requests to one server. It holds no connection, and no token.

    Each request has a connection of its own, so that copies, threads and forked processes do not
    share any. An attempt that fails on its way is made again, under the same id: the server puts no
    batch to its oracle twice, and counts none twice.

    Args:
        url: of the server.
        token: that it asks for.
        timeout: seconds for a whole request, which the server answers within ten.
        patience: seconds without any reply after which it is taken for down.

    Raises:
        UserError: the address or a number is out of bounds.
    """

    url: str
    token: TokenSource
    timeout: float
    patience: float
    # Batches whose answers are here: the server need not remember them any longer.
    received: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        refuse_url(self.url)
        if not WAIT < self.timeout <= self.patience < KEPT:
            raise UserError(
                f"ServedOracle.timeout must be above {WAIT:g} s, which a reply may take, and "
                f"patience between it and {KEPT:g} s, as long as a server remembers, but they are "
                f"{self.timeout:g} s and {self.patience:g} s"
            )

    def describe(self) -> Description:
        """What the server says of its oracle.

        Raises:
            UserError: there is no such server, or it does not let us ask.
        """
        self.token.read()  # a missing one is refused first
        announce(self.url, self.token)
        status, reply = self._insist("GET", DESCRIPTION, None, LONGEST_REPLY, _START)
        return Description.of_json(self._content(status, reply, UserError), self.url)

    def ask(
        self, kind: Kind, fingerprint: str, content: Mapping[str, Any], longest: int = LONGEST_REPLY
    ) -> Iterator[dict[str, Any]]:
        """Put a batch; what is answered comes as the server has it, and the whole's end last.

        Args:
            kind: of the batch.
            fingerprint: of the oracle that is to answer.
            content: what is asked.
            longest: bytes of a reply at most.

        Yields:
            replies, each with ``answers``; the last one is ``done``. A server that was started
            again in between gives answers again that were given.

        Raises:
            OracleStoppedError: the server is down, refuses, or serves another oracle.
        """
        have, done, received = 0, False, self.received.copy()
        head: dict[str, Any] = {"protocol": PROTOCOL, "fingerprint": fingerprint, "kind": kind}
        head["batch"] = uuid.uuid4().hex
        while not done:
            body = to_bytes({**content, **head, "have": have, "received": received})
            status, reply = self._insist("POST", BATCHES, body, longest, self.patience)
            if status == 410 and have:  # the server has begun anew, and asks anew
                head["batch"], have = uuid.uuid4().hex, 0
                continue
            said = self._content(status, reply, OracleStoppedError)
            done = said.get("done") is True
            have += len(said["answers"])
            if done:
                left = [one for one in self.received if one not in received]
                self.received = [*left, head["batch"]]
            yield said

    # ---- one request ----

    def _insist(
        self, method: str, path: str, body: bytes | None, longest: int, patience: float
    ) -> tuple[int, bytes]:
        """Status and body of a reply; tried until there is one, or patience ends."""
        began, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                status, reply = self._exchange(method, path, body, longest)
                if status not in _PASSING:
                    return status, reply
                words = f"status {status}"
            except _UnreachedError as error:
                words = str(error)
            if time.monotonic() - began + pause > patience:
                raise OracleStoppedError(
                    f"the oracle's server at {self.url} has given no answer for {patience:g} s "
                    f"({words}): see that `nlhf serve-oracle` runs there, and go on"
                )
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _exchange(
        self, method: str, path: str, body: bytes | None, longest: int
    ) -> tuple[int, bytes]:
        """One attempt."""
        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        headers = {"Content-Type": "application/json", "User-Agent": "nlhf_zoo"}
        if (token := self.token.read()) is not None:
            headers["Authorization"] = f"Bearer {token}"
        ends = time.monotonic() + self.timeout
        connection = make(parts.hostname or "", parts.port, timeout=self.timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            pieces, size = [], 0
            while piece := response.read1(2**20):
                pieces.append(piece)
                size += len(piece)
                if size > longest:
                    raise OracleStoppedError(
                        f"the oracle's server at {self.url} sends more than {longest} bytes: see "
                        "that it is one of `nlhf serve-oracle`"
                    )
                if time.monotonic() > ends:
                    raise _UnreachedError(f"no whole reply within {self.timeout:g} s")
            if response.length:  # of what was announced this much has not come
                raise _UnreachedError("a reply that breaks off")
            return response.status, b"".join(pieces)
        except (OSError, http.client.HTTPException) as error:
            words = presentable(f"{type(error).__name__} {error}", token)
            raise _UnreachedError(words) from None  # it may hold the headers
        finally:
            connection.close()

    def _content(self, status: int, reply: bytes, kind: type[UserError]) -> dict[str, Any]:
        """What a reply says.

        Raises:
            UserError: it is a refusal, of the kind that is given.
        """
        try:
            content = of_bytes(reply)
        except ValueError:
            content = None
        if status == 200 and isinstance(content, dict):
            return content
        where = f"the oracle's server at {self.url}"
        if status == 401:
            held = f"the token in {self.token.place}" if self.token else "no token"
            raise kind(
                f"{where} does not take {held}: give the one that it was started with, by "
                "token_env or token_file"
            )
        if status == 409:
            raise kind(
                f"{where} serves another oracle than when this run began: serve that one again, "
                "and go on, or start afresh"
            )
        said = content.get("error") if isinstance(content, dict) else None
        words = presentable(str(said or "no words of `nlhf serve-oracle`"), self.token.read())
        raise kind(f"{where} refuses by status {status} ({words}): see what it is, and go on")
