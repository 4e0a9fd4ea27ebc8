"""Who is asked when, and again: slots, pace, attempts and patience of one call of a judge."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, final

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles.judge.client import PASSING, REFUSED, Failure, JudgeClient, Outcome, Reply
from nlhf_zoo.oracles.judge.reply import Completion, NotACompletionError, read_completion
from nlhf_zoo.oracles.ledger import Ledger

_LONGEST_BACKOFF = 60.0  # seconds
_JITTER = random.Random()  # its own: Python's global one belongs to the run and its seed


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard a judge may be asked.

    Args:
        concurrency: questions on their way at once, those that wait for another attempt included.
        requests_per_minute: at most, evenly spaced; None for no limit.
        retries: attempts after the first, of those that reached the server.
        backoff: seconds before the first of these, doubled for each further one.
        patience: seconds without any answer after which the judge is taken for down.
    """

    concurrency: int
    requests_per_minute: float | None
    retries: int
    backoff: float
    patience: float


@dataclass(slots=True)
class History:
    """What one call leaves to the next.

    Args:
        silent: seconds of asking since the last answer.
        next_send: when the pace allows the next request, on the monotonic clock.
        last_error: what the judge said last that was no verdict; the key is hidden.
    """

    silent: float = 0.0
    next_send: float = 0.0
    last_error: str = ""


@dataclass(order=True, slots=True)
class _Waiting:
    """A question that waits for its next attempt."""

    due: float
    number: int
    attempts: int = field(compare=False)  # so far


@final
class Exchange:
    """One call: questions go out, completions come back.

    Everything is decided and counted in the caller's thread; the client's own thread only waits
    for the network.

    Args:
        client: sends requests.
        pace: how hard the judge may be asked.
        history: of earlier calls; it goes on.
        ledger: counts requests, retries and tokens.
        body: of the request for a question.
        counts: of a question's first request, beside ``requests``.
    """

    def __init__(
        self,
        client: JudgeClient,
        pace: Pace,
        history: History,
        ledger: Ledger,
        body: Callable[[int], Mapping[str, Any]],
        counts: Callable[[int], Mapping[str, int]],
    ) -> None:
        self.client = client
        self.pace = pace
        self.history = history
        self.ledger = ledger
        self.body = body
        self.counts = counts
        self._outcomes: SimpleQueue[tuple[int, Outcome]] = SimpleQueue()
        # One object: a bound method is another one each time, and `cancel` compares.
        self._deliver = lambda number, outcome: self._outcomes.put((number, outcome))
        self._sent: dict[int, int] = {}  # attempts of the questions on their way
        self._unreached: Counter[int] = Counter()  # attempts that no server has seen
        self._waiting: list[_Waiting] = []
        self._has_fresh = True
        self._stop: UserError | None = None
        self._abandons = False  # whether what is on its way is given up with that
        self._since: float | None = None  # when the silence of this call began

    def run(self, num: int) -> Iterator[tuple[int, Completion | None]]:
        """Ask all questions.

        Args:
            num: questions are numbered from 0 up to this.

        Yields:
            number of a question with its completion, None where it could not be had.

        Raises:
            OracleStoppedError: the judge is down, or a budget is spent; after all completions that
                were had.
            UserError: the endpoint refuses all questions alike.
        """
        fresh = iter(range(num))
        if num:
            self.client.start()  # takes a second, which is no silence of the judge's
        try:
            while True:
                self._send_due(fresh)
                if not (self._sent or self._waiting or self._has_fresh):
                    break
                for number, outcome in self._received():
                    if (settled := self._settled(number, outcome)) is not None:
                        yield settled
                self._stop_if_silent()
                if self._abandons:
                    break
        finally:
            if self._sent:
                self.client.cancel(self._deliver)
            self.history.silent = self._silence()
        if self._stop is not None:
            raise self._stop

    def _send_due(self, fresh: Iterator[int]) -> None:
        """Send what is due and allowed, in one go."""
        requests = []
        now = time.monotonic()
        while self._stop is None and (waiting := self._next(fresh, now)) is not None:
            number, attempts = waiting.number, waiting.attempts
            counts = {"retries": 1} if attempts else self.counts(number)
            try:
                self.ledger.charge(requests=1, **counts)
            except OracleStoppedError as error:
                self._halt(error)
                continue
            requests.append((number, self.body(number)))
            self._sent[number] = attempts + 1
            if self.pace.requests_per_minute is not None:
                self.history.next_send = now + 60 / self.pace.requests_per_minute
        if requests:
            if self._since is None:
                self._since = now - self.history.silent
            self.client.send(requests, self._deliver)

    def _next(self, fresh: Iterator[int], now: float) -> _Waiting | None:
        """The next question to be sent now, if any."""
        if self.pace.requests_per_minute is not None and now < self.history.next_send:
            return None
        if self._waiting and self._waiting[0].due <= now:
            return heapq.heappop(self._waiting)
        if len(self._sent) + len(self._waiting) < self.pace.concurrency and self._has_fresh:
            number = next(fresh, None)
            self._has_fresh = number is not None
            return None if number is None else _Waiting(now, number, 0)
        return None

    def _received(self) -> Iterator[tuple[int, Outcome]]:
        """All outcomes that are there; waits for one until something is to be done."""
        try:
            yield self._outcomes.get(timeout=self._idle())
            while True:
                yield self._outcomes.get_nowait()
        except Empty:
            return

    def _idle(self) -> float:
        """Seconds until something is to be done without an outcome."""
        ends = [] if self._since is None else [self._since + self.pace.patience]
        if self._waiting:
            ends.append(max(self._waiting[0].due, self.history.next_send))
        if self._has_fresh and len(self._sent) + len(self._waiting) < self.pace.concurrency:
            ends.append(self.history.next_send)
        return max(0.0, min(ends) - time.monotonic())

    def _settled(self, number: int, outcome: Outcome) -> tuple[int, Completion | None] | None:
        """What became of a question; None where it is to be asked again."""
        if isinstance(outcome, BaseException):
            raise outcome
        attempts = self._sent.pop(number)
        read = self._read(outcome)
        if isinstance(read, Completion):
            self._heard()
            self._count_tokens(read)
            return number, read
        self.history.last_error = read.said
        if read.status in REFUSED:
            self._heard()
            return number, None
        if read.status is not None and read.status not in PASSING and read.status < 500:
            self._halt(self._refusal(read), abandon=True)
            return None
        if read.unreachable:  # an outage is waited for, as long as patience lasts
            self._unreached[number] += 1
        if attempts - self._unreached[number] > self.pace.retries:
            return number, None
        if self._stop is None:
            due = time.monotonic() + self._wait(attempts, read.wait)
            heapq.heappush(self._waiting, _Waiting(due, number, attempts))
        return None

    def _read(self, outcome: Reply | Failure) -> Completion | Failure:
        if isinstance(outcome, Failure):
            return outcome
        try:
            return read_completion(outcome.body)
        except NotACompletionError:
            said = self.client.presentable(outcome.body) or "nothing"
            return Failure(f"no chat completion, but {said}")

    def _refusal(self, failure: Failure) -> UserError:
        endpoint = self.client.endpoint
        check = "base_url and model"
        if failure.status in (401, 403):
            check = f"the key in {endpoint.api_key_env}" if endpoint.api_key_env else "api_key_env"
        return UserError(
            f"the judge at {endpoint.base_url} refuses every question ({failure.said}): "
            f"check {check}"
        )

    def _stop_if_silent(self) -> None:
        if self._stop is None and self._silence() > self.pace.patience:
            endpoint = self.client.endpoint
            self._halt(
                OracleStoppedError(
                    f"the judge at {endpoint.base_url} has given no answer for "
                    f"{self.pace.patience:g} s (its last words: "
                    f"{self.history.last_error or 'none'}): see that it runs, and go on"
                ),
                abandon=True,
            )

    def _wait(self, attempts: int, wanted: float | None) -> float:
        """Seconds before the next attempt: exponential with jitter, or what the server wants."""
        longest = min(_LONGEST_BACKOFF, self.pace.backoff * 2.0 ** min(attempts - 1, 30))
        backoff = longest * _JITTER.uniform(0.5, 1)
        return max(backoff, min(wanted or 0.0, self.pace.patience / 2))  # before it ends

    def _count_tokens(self, completion: Completion) -> None:
        try:
            self.ledger.charge(
                prompt_tokens=completion.prompt_tokens, reply_tokens=completion.reply_tokens
            )
        except OracleStoppedError as error:
            self._halt(error)

    def _halt(self, error: UserError, abandon: bool = False) -> None:
        """Send nothing any more."""
        self._stop = self._stop or error
        self._abandons = self._abandons or abandon
        self._has_fresh = False
        self._waiting.clear()

    def _heard(self) -> None:
        self.history.silent = 0.0
        self._since = time.monotonic() if self._sent or self._waiting else None

    def _silence(self) -> float:
        return self.history.silent if self._since is None else time.monotonic() - self._since
