"""The page on which people choose, by HTTP: the standard library's server, for this machine alone.

What a request may do, and what is checked before anything of it is read:

- Its Host is an address or a name of this server, so that no page elsewhere reaches it under a name
  of its own whose address it has changed (DNS rebinding).
- Its Origin, where a browser sends one, is this server's page.
- It has the token, in a header that no page of another origin may send. The page itself has nothing
  of anybody's and needs none. It is given the token behind the # of its address, which a browser
  sends to nobody: not to a server, its log or a proxy, nor to another page as the referrer.
- Its body is JSON, of a length that is said before and has a limit.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
import socket
import threading
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, final

from nlhf_zoo.errors import UserError
from nlhf_zoo.people.api import PeopleAPI, RequestError, read
from nlhf_zoo.people.headers import read_fields, request_line
from nlhf_zoo.people.pairs import VoteRefusedError
from nlhf_zoo.people.store import VoteStore

_LONGEST_BODY = 64 * 1024  # bytes
_PATIENCE = 60.0  # seconds without a word after which a connection is closed
_LAST_ANSWERS = 5.0  # seconds for which an end waits for what was asked before it
_MOST_CONNECTIONS = 256
_LOOKS = 10  # a second, at what other processes have written
_JSON = "application/json"
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_PAGE = Path(__file__).with_name("page.html").read_bytes()


def _hashes(tag: bytes) -> str:
    """The hashes of what stands in tags of the page, as a policy for its content has them."""
    found = re.findall(b"<%s>(.*?)</%s>" % (tag, tag), _PAGE, re.DOTALL)
    hashed = (b64encode(hashlib.sha256(text).digest()).decode() for text in found)
    return " ".join(f"'sha256-{one}'" for one in hashed)


_HEADERS = "".join(
    f"{name}: {value}\r\n"
    for name, value in {
        "Cache-Control": "no-store",
        "Content-Security-Policy": (
            f"default-src 'none'; script-src {_hashes(b'script')}; style-src {_hashes(b'style')}; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        ),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }.items()
)
_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    421: "Misdirected Request",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class _Refused(Exception):  # noqa: N818  # of a request, no error of ours
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer leaves in one piece
    server: _Server
    fields: dict[str, str]
    raw_requestline: bytes  # of the library, which does not say so

    def do_GET(self) -> None:  # the library's name
        """The page."""
        self._answer(self._page)

    def do_POST(self) -> None:
        """A request of the page's."""
        self._answer(self._asked)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing of a request gets into a log."""

    def parse_request(self) -> bool:
        """Read the head; whether it is one. It says itself what is wrong with it."""
        request = request_line(self.raw_requestline)
        fields = read_fields(self.rfile) if request else None  # type: ignore[arg-type]  # is read
        self.command, self.request_version, self.close_connection = "", "HTTP/1.1", True
        if request is None or fields is None:
            self.send_error(400)
            return False
        self.command, self.path, stays = request
        self.requestline, self.fields = "", fields
        wish = fields.get("connection", "").lower()
        self.close_connection = wish == "close" or not (stays or wish == "keep-alive")
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is no HTTP, or a method that is none here."""
        self.close_connection = True
        self._send(code, _JSON, b'{"error": "this is no request that is served here"}')

    def _answer(self, answer: Callable[[], tuple[str, bytes]]) -> None:
        try:
            self._refuse_others()
            status, (kind, body) = 200, answer()
        except _Refused as refused:
            self.close_connection = True  # what of its body was not read is no next request
            status, kind, body = refused.status, _JSON, _sentence(refused)
        self._send(status, kind, body)

    def _page(self) -> tuple[str, bytes]:
        if self.path.partition("?")[0] != "/":
            raise _Refused(404, "there is nothing under this address")
        return "text/html; charset=utf-8", _PAGE

    def _asked(self) -> tuple[str, bytes]:
        serve = self.server.api.routes.get(self.path)
        if serve is None:
            raise _Refused(404, "there is nothing under this address")
        body = self._body()
        try:
            answer = serve(read(body, self.server.name))
        except RequestError as error:
            raise _Refused(400, str(error)) from None
        except VoteRefusedError as error:
            raise _Refused(409, str(error)) from None
        except UserError as error:  # the file cannot be written for now
            raise _Refused(503, str(error)) from None
        except Exception as error:
            what = type(error).__name__  # what it says may hold what was asked
            raise _Refused(500, f"unexpected {what}: please report it") from error
        return _JSON, _ENCODER.encode(answer).encode()

    def _refuse_others(self) -> None:
        """Refuse who is not the page of this server."""
        host = self.fields.get("host", "")
        if not self.server.is_named(host):
            raise _Refused(421, "this server has another name")
        origin = self.fields.get("origin")
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            raise _Refused(403, "this request comes from a page of another origin")

    def _body(self) -> bytes:
        scheme, _, token = self.fields.get("authorization", "").partition(" ")
        given, own = token.strip().encode("utf-8", "replace"), self.server.token.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, own):
            raise _Refused(401, "the address lacks the token, or has another: open the printed one")
        if self.fields.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            raise _Refused(415, f"the body is {_JSON}")
        length = self.fields.get("content-length", "")
        if not (length.isascii() and length.isdigit()) or "transfer-encoding" in self.fields:
            raise _Refused(411, "the length of the body is said before it")
        if len(length) > 9 or int(length) > _LONGEST_BODY:
            raise _Refused(413, f"a request has at most {_LONGEST_BODY} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise _Refused(400, "the body ends early")
        return body

    def _send(self, status: int, kind: str, body: bytes) -> None:
        closing = "Connection: close\r\n" if self.close_connection else ""
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\n{_HEADERS}{closing}"
            f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.wfile.write(head.encode("latin-1") + body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, store: VoteStore) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.api = PeopleAPI(store)
        self.name, self.token = store.name, store.token
        self._host = host.lower()
        self._names: dict[str, bool] = {}
        self._connections: set[socket.socket] = set()
        self._changes = threading.Condition()
        super().__init__((host, port), _Handler)

    def is_named(self, host: str) -> bool:
        """Whether the Host of a request is one of this server, rather than a name of another's."""
        if host not in self._names:
            if len(self._names) > _MOST_CONNECTIONS:
                self._names.clear()
            self._names[host] = self._is_named(host)
        return self._names[host]

    def _is_named(self, host: str) -> bool:
        name, port = _split(host.lower())
        if port != str(self.server_address[1]):
            return False
        if name in ("localhost", self._host):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return not is_loopback(self._host) and name == socket.gethostname().lower()
        return address.is_loopback or not is_loopback(self._host)

    def server_bind(self) -> None:
        """As the library's, without its question to the DNS for this machine's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self._host, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, unless there are too many."""
        with self._changes:
            is_one_too_many = len(self._connections) >= _MOST_CONNECTIONS
            if not is_one_too_many:
                self._connections.add(request)
        if is_one_too_many:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection until it ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changes:
                self._connections.discard(request)
                self._changes.notify_all()

    def end_connections(self) -> None:
        """Read no further request; those that were read are answered, if it takes no time."""
        with self._changes:
            for connection in self._connections:
                with suppress(OSError):  # its other end has closed it
                    connection.shutdown(socket.SHUT_RD)
            self._changes.wait_for(lambda: not self._connections, _LAST_ANSWERS)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is nobody's mistake; of others the traceback is no request's."""


def _split(host: str) -> tuple[str, str]:
    """The name and the port of a Host."""
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::(\d{1,5}))?", host)
    return (found[1] or found[2], found[3] or "80") if found else ("", "")


def _sentence(error: Exception) -> bytes:
    return json.dumps({"error": str(error)}, ensure_ascii=False).encode()


def is_loopback(host: str) -> bool:
    """Whether an address of this machine is for this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@final
class PeopleServer:
    """The page and its interface, served until `close`.

    Args:
        store: the questions and votes.
        host: an address of this machine.
        port: of it; 0 takes a free one.

    Raises:
        UserError: nothing can be served there.
    """

    def __init__(self, store: VoteStore, host: str = "127.0.0.1", port: int = 0) -> None:
        self.store = store
        try:
            self._server = _Server(host, port, store)
        except (OSError, UnicodeError) as error:
            said = getattr(error, "strerror", None) or "it is no address of this machine"
            raise UserError(f"nothing can be served at {host}, port {port}: {said}") from error
        self._host = host
        self._ends = threading.Event()
        self._threads = [
            threading.Thread(target=partial(self._server.serve_forever, 0.1), daemon=True),
            threading.Thread(target=self._keep_house, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def port(self) -> int:
        """The port."""
        return int(self._server.server_address[1])

    @property
    def address(self) -> str:
        """The page's address, with the token."""
        host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(
            self._host, self._host
        )
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self.port}/#{self._server.token}"

    def close(self) -> None:
        """Serve nobody any more; who waits for a question is told that there is none."""
        self._ends.set()
        self._server.api.end()
        self._server.shutdown()
        self._server.server_close()
        self._server.end_connections()
        for thread in self._threads:
            thread.join()
        self.store.checkpoint()

    def _keep_house(self) -> None:
        """Tell of what other processes have written, and bring votes onto the disk."""
        seen, kept, looks = self.store.changed(), self.store.version(), 0
        while not self._ends.wait(1 / _LOOKS):
            try:
                if (now := self.store.changed()) != seen:
                    seen = now
                    self._server.api.tell()
                looks += 1
                if looks % _LOOKS == 0 and (version := self.store.version()) != kept:
                    self.store.checkpoint()
                    kept = version
            except UserError:  # a disk that is full for now: requests say so
                continue
