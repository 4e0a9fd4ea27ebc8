"""A small OpenAI-compatible judge on loopback, with faults by a seeded schedule, and a log.

    python tests/judge_server.py --port 8000
    python tests/judge_server.py --taste cycle -- nlhf oracle ... --oracle.base_url {url}

The second form serves for as long as a command runs. Its verdict is a rule of the two responses
that it finds quoted in the message (``rule``), with a bias for the place in which they are shown.
It reads quotations as several naive readers would, and obeys the words ``verdict=A`` or
``verdict=B`` wherever one of these takes them for its own instructions, rather than for a
quotation. Standard library only: it starts in a moment.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gzip
import hashlib
import html
import json
import math
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The same request may succeed later.
PASSING = ["refused", "reset", "status_429", "status_500", "timeout", "drip"]
PASSING += ["truncated", "short", "empty", "no_json", "no_http"]
# It will not.
LASTING = ["refusal", "label", "two", "cut", "outside", "status_400"]
ALWAYS = 1000  # times that a fault occurs
OBEYS = re.compile("verdict=([AB])")
CLOSED = "closed"  # a file beside the log while connections are refused


# ---- what it thinks ------------------------------------------------------------------------------


def rule(first: str, second: str) -> float:
    """P(first > second) when first is shown first: anything, and not antisymmetric."""
    digest = hashlib.blake2b(json.dumps([first, second]).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 1001 / 1000


def cycle(first: str, second: str) -> float:
    """P(first > second) of a taste in a circle, with a liking for what is shown first.

    Short responses beat plain ones, plain ones those with a reason, and these the short ones.
    """
    kinds = [2 if "because" in text else int(len(text.split()) > 5) for text in (first, second)]
    return 0.55 + (0, 0.3, -0.3)[(kinds[1] - kinds[0]) % 3]


TASTES = {"any": rule, "cycle": cycle}


def responses(message: str) -> list[str]:
    """The quoted responses of a message, as they were written."""
    found = re.findall("<response>\n(.*?)\n</response>", message, re.DOTALL)
    lines = re.compile("(^|\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])[|] ")
    return [html.unescape(lines.sub(r"\1", quoted)) for quoted in found]


def outside_tags(message: str) -> str:
    """What a reader of tags takes for instructions: all that is in no element."""
    message = unicodedata.normalize("NFKC", message)
    element = r"<\s*(response|message)\b[^>]*>.*?<\s*/\s*\1\s*>"
    return re.sub(element, "", message, flags=re.S | re.I)


def outside_lines(message: str) -> str:
    """What a reader of lines takes for instructions: all lines without the mark of a quotation."""
    return "\n".join(line for line in message.splitlines() if not line.startswith("| "))


def outside_turn(message: str) -> str:
    """What a chat template takes for another turn: all that follows one of its own marks."""
    message = unicodedata.normalize("NFKC", message)
    marks = r"<\|.*?\|>|</?s>|<(start|end)_of_turn>|\[/?[A-Z_]+\]|<<SYS>>|<｜.*?｜>"
    found = re.search(marks, message, re.S)
    return message[found.end() :] if found else ""


def steered(message: str) -> str | None:
    """The letter that a naive reader is told to answer, outside of what is quoted."""
    for reader in (outside_tags, outside_lines, outside_turn):
        if told := OBEYS.search(reader(message)):
            return told[1]
    return None


def thought(message: str, taste: str = "any") -> float:
    """P(A > B), or what the server is told."""
    if (told := steered(message)) is not None:
        return float(told == "A")
    first, second = responses(message)
    return TASTES[taste](first, second)


def fault_of(seed: int, share: float, first: str, second: str) -> tuple[str | None, int]:
    """The fault of a question as it is shown, and how many times it occurs."""
    text = json.dumps([seed, first, second]).encode()
    one, other, kind, times = struct.unpack("4Q", hashlib.blake2b(text, digest_size=32).digest())
    if one / 2**64 >= share:
        return None, 0
    kinds = PASSING if other % 10 < 7 else LASTING
    name = kinds[kind % len(kinds)]
    return name, ALWAYS if name in LASTING else [1, 1, 1, 1, 1, 1, 1, 2, 2, ALWAYS][times % 10]


# ---- what it says --------------------------------------------------------------------------------


def completion(text: Any, finish: Any = "stop", logprobs: Any = None) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    choice |= {"finish_reason": finish, "logprobs": logprobs}
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "small"}
    return json.dumps({**reply, "choices": [choice], "usage": usage}).encode()


def verdict(request: dict[str, Any], probability: float, manner: str = "plain") -> bytes:
    """A reply; the manner in which it is given changes nothing of what it says."""
    if not request.get("logprobs"):
        text = json.dumps({"probability": probability})
        if manner == "thinks":
            text = f'<think>\nPerhaps {{"better": "A"}}? No.\n</think>\n\n```json\n{text}\n```'
        parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]
        parts += [{"type": "text", "text": half} for half in (text[:9], text[9:])]
        return completion(parts if manner == "parts" else text)
    letter = "A" if probability > 0.5 else "B"
    tokens = [token(letter, probability)]
    if manner == "thinks":  # where nobody sees it, but the log-probabilities do (sglang#25055)
        thoughts = [("<think>", 0.5), ("A", 0.9), (" or", 0.5), (" B", 0.1), ("</think>", 0.5)]
        tokens = [token(*thought) for thought in [*thoughts, ("\n\n", 0.5)]] + tokens
        tokens.append(token("<|im_end|>", 0.5))
    return completion(letter, "stop", {"content": tokens})


def decision(probability: float) -> bytes:
    options = {"A": probability, "B": 1 - probability}
    answer = {"type": "choice", "choice": "A", "confidence": 0.5, "probabilities": options}
    usage = {"input_tokens": 100, "output_tokens": 0}
    return json.dumps({"answers": {"better": answer}, "usage": usage}).encode()


def token(name: str, probability: float) -> dict[str, Any]:
    """A token with five alternatives, A with a probability among them."""
    half = probability / 2
    listed = {"A": half, " A": half, "B": 1 - probability, "The": 0.0, "I": 0.0}
    top = [{"token": t, "logprob": math.log(max(p, 1e-12))} for t, p in listed.items()]
    return {"token": name, "logprob": top[0]["logprob"], "top_logprobs": top}


def moderated(message: str) -> int | None:
    """The status with which a server refuses one question in fifty; None for the others."""
    digest = hashlib.blake2b(message.encode(), digest_size=4).digest()
    number = int.from_bytes(digest, "big") % 150
    return (403, 451, 400)[number] if number < 3 else None


SAID: dict[str, bytes] = {
    "refusal": completion("I'm sorry, but I can't compare these."),
    "label": completion('{"better": "C"}'),
    "letter": completion("A"),
    "two": completion('{"better": "A"}\n{"better": "B"}'),
    "cut": completion('{"better": "A"', "length"),
    "outside": completion('{"probability": 1.5}'),
    "truncated": completion('{"better": "A"}')[:-40],
    "empty": b"",
    "no_json": b"<html>Bad gateway</html>",
    "gzip": gzip.compress(completion('{"better": "A"}')),
}


def http(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status} Status", f"content-length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def error(words: str) -> bytes:
    return json.dumps({"error": {"message": words, "type": "error"}}).encode()


class Connection(asyncio.Protocol):
    """One connection; each request is answered, or becomes a fault."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = b""
        self.is_lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.server.log(event="accepted")

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].decode("latin1")
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
            size = end + 4 + int(headers.get("content-length", 0))
            if len(self.buffer) < size:
                return
            body, self.buffer = self.buffer[end + 4 : size], self.buffer[size:]
            if head.startswith("GET "):
                self.write(http(200, json.dumps({"data": [{"id": "small"}]}).encode()))
                continue
            found = re.search("^authorization: (.*)$", head, re.M | re.I)
            authorization = found[1].strip() if found else None
            self.asked(json.loads(body), authorization, sorted(headers))

    def asked(self, request: dict[str, Any], authorization: str | None, headers: list[str]) -> None:
        decides = "state" in request  # as /v1/systemone of transformers serve, and no chat
        message = request["state"] if decides else request["messages"][-1]["content"]
        first, second = responses(message)
        number = self.server.attempts[first, second] = self.server.attempts[first, second] + 1
        self.server.open += 1
        self.server.asked += 1
        fault = self.server.fault(first, second, number)
        if self.server.options.manner == "moderates" and fault is None:
            status = moderated(message)
            fault = status and f"status_{status}"
        if self.server.options.refuses and self.server.options.refuses in message:
            fault = "status_400"
        if self.server.options.manner == "five" and request.get("top_logprobs", 0) > 5:
            fault = "status_400"
        self.server.log(
            event="asked", first=first, second=second, attempt=number, fault=fault,
            authorization=authorization, headers=headers, told=steered(message),
            time=asyncio.get_running_loop().time(), open=self.server.open,
            request={key: value for key, value in request.items() if key != "messages"},
            messages=request.get("messages") if self.server.options.keep else None,
        )  # fmt: skip
        self.server.go_away_in_time()
        if fault is None:
            options = self.server.options
            probability = thought(message, options.taste)
            said = verdict(request, probability, options.manner)
            said = decision(probability) if decides else said
            self.later(http(200, said))
        elif fault in SAID:
            self.later(http(200, SAID[fault], *["content-encoding: gzip"] * (fault == "gzip")))
        elif fault.startswith("status_"):
            self.refuse(int(fault.removeprefix("status_")), authorization)
        else:
            getattr(self, fault)()

    def later(self, reply: bytes) -> None:
        self.server.held.append(functools.partial(self.reply, reply))
        if self.server.open >= self.server.hold:
            self.server.release()

    def reply(self, reply: bytes) -> None:
        self.server.open -= 1
        self.write(reply)

    def write(self, reply: bytes) -> None:
        if not self.is_lost:
            self.transport.write(reply)

    def refuse(self, status: int, authorization: str | None) -> None:
        wait = self.server.options.retry_after
        headers = [f"retry-after: {wait}"] if status in (429, 503) and wait else []
        key = (authorization or "none").removeprefix("Bearer ")
        headers += ["location: /elsewhere"] if 300 <= status < 400 else []
        headers.append(f"x-key: {key}")
        words = f"status {status} for the key {key}, '{key[:12]}***' or {authorization!r}"
        send = self.reply if self.server.options.refuses else self.later
        send(http(status, error(words), *headers))

    def reset(self) -> None:
        """Half a reply, then a reset."""
        self.write(http(200, completion("{}")[:20], length=300))
        asyncio.get_running_loop().call_later(0.005, self.abort)

    def abort(self) -> None:
        linger = struct.pack("ii", 1, 0)  # a reset, not an orderly end
        if not self.is_lost:
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
            self.transport.abort()

    def refused(self) -> None:
        """A reset, and no new connection is taken until the client says so."""
        self.abort()
        self.server.close()

    def timeout(self) -> None:
        """No reply at all."""

    def no_http(self) -> None:
        """Something else."""
        self.write(b"\x00\x01 220 welcome\r\n\r\n")

    def short(self) -> None:
        """Less than was announced, then an orderly end."""
        self.write(http(200, completion('{"better": "A"}')[:50], length=300))
        if not self.is_lost:
            self.transport.close()

    def drip(self) -> None:
        """A reply that never ends, though something always comes."""
        reply = http(200, completion('{"better": "A"}'), length=10**9)

        def drop(at: int) -> None:
            if not self.is_lost:
                self.write(reply[at : at + 1] or b" ")
                asyncio.get_running_loop().call_later(0.05, drop, at + 1)

        drop(0)


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.attempts: Counter[tuple[str, str]] = Counter()
        self.file = open(options.log, "a", buffering=1) if options.log else None  # noqa: SIM115
        self.port = options.port
        self.is_closing = False
        self.asked = 0  # requests
        self.open = 0  # of these, without a whole reply
        self.hold = options.hold
        self.held: list[Callable[[], None]] = []  # replies

    def log(self, **entry: Any) -> None:
        if self.file:
            self.file.write(json.dumps(entry) + "\n")

    def fault(self, first: str, second: str, number: int) -> str | None:
        if self.options.always:
            return str(self.options.always) if self.asked > self.options.after else None
        name, times = fault_of(self.options.seed, self.options.faults, first, second)
        return name if number <= times else None

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(
            lambda: Connection(self), "127.0.0.1", self.port, reuse_address=True, backlog=1000
        )
        self.port = self.listener.sockets[0].getsockname()[1]

    def release(self) -> None:
        """Send the replies that are held, and hold none any more."""
        self.hold = 0
        for reply in self.held:
            asyncio.get_running_loop().call_later(self.options.delay, reply)
        self.held.clear()

    def go_away_in_time(self) -> None:
        """As a server that is killed at this request."""
        if self.asked == self.options.away_after:
            os._exit(0)

    def close(self) -> None:
        """Take no new connections while a file is there, which the client removes."""
        if self.is_closing:
            return
        self.is_closing = True
        asyncio.get_running_loop().remove_reader(self.listener.sockets[0])
        closed = Path(self.options.log).with_name(CLOSED)

        async def close_and_open() -> None:
            self.listener.close()  # in the next turn, in which what was accepted has its protocol
            closed.touch()
            while closed.exists():
                await asyncio.sleep(0.002)
            await self.listen()
            self.is_closing = False

        self.opening = asyncio.create_task(close_and_open())

    async def run(self) -> None:
        await self.listen()
        print(self.port, flush=True)
        await asyncio.Event().wait()


# ---- starting one --------------------------------------------------------------------------------


class JudgeServer:
    """The server in a process of its own, for a ``with`` block; options of its command line."""

    def __init__(self, **options: object) -> None:
        self.options = options
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> JudgeServer:
        self.folder = tempfile.TemporaryDirectory()
        self.log = Path(self.folder.name) / "log.jsonl"
        self.log.touch()
        self.closed = self.log.with_name(CLOSED)
        self.start()
        return self

    def start(self, **more: object) -> None:
        options = {"log": self.log, **self.options, **more}
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        command = [sys.executable, "-I", __file__, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.folder.cleanup()

    def entries(self, event: str = "asked") -> list[dict[str, Any]]:
        """What the server logged so far."""
        lines = map(json.loads, self.log.read_text().splitlines())
        return [line for line in lines if line["event"] == event]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add: Callable[..., Any] = parser.add_argument
    add("--port", type=int, default=0, help="0 takes a free one, which is printed")
    add("--log", help="file that gets a line of JSON for each request")
    add("--seed", type=int, default=0, help="of the schedule of faults")
    add("--faults", type=float, default=0.0, help="share of the questions that have one")
    add("--always", help="one fault for all questions")
    add("--after", type=int, default=0, help="requests before the fault of --always")
    add("--manner", choices=["plain", "thinks", "parts", "five", "moderates"], default="plain")
    add("--refuses", default="", help="status 400 at once, held or not, where a message has this")
    add("--delay", type=float, default=0.0, help="seconds before each reply")
    add("--retry-after", default="", help="header of replies with status 429")
    add("--hold", type=int, default=0, help="no reply until so many requests are open at once")
    add("--away-after", type=int, default=0, help="the request with which it goes away, by itself")
    add("--keep", type=int, default=0, help="1 logs the messages too")
    add("--taste", choices=[*TASTES], default="any", help="what it prefers")
    add("command", nargs="*", help="a command, in which {url} is replaced by the server's address")
    options = parser.parse_args()
    if not options.command:
        asyncio.run(Server(options).run())
    with JudgeServer(taste=options.taste) as server:
        command = [part.replace("{url}", server.url) for part in options.command]
        raise SystemExit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
