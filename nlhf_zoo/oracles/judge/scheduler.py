"""Who is asked when, and again: concurrency, rate, attempts and patience of one call of a judge."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, final

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles.judge.client import Failure, JudgeClient
from nlhf_zoo.oracles.judge.reply import Completion
from nlhf_zoo.oracles.judge.state import FEW, JudgeState
from nlhf_zoo.oracles.ledger import Ledger
from nlhf_zoo.oracles.text_oracle import Question

_MAX_CONCURRENCY = 1000  # connections that the openai client opens
_LONGEST_BACKOFF = 60.0  # seconds
_LONGEST_WAIT = 1.0  # seconds; a signal that comes just before a wait is seen only after it
_JITTER = random.Random()  # its own: Python's global one belongs to the run and its seed


@dataclass(frozen=True, slots=True)
class RateLimits:
    """How hard a judge may be asked; refuses what cannot be. Times are in seconds."""

    concurrency: int  # questions on their way at once, with those that wait for another attempt
    requests_per_minute: float | None  # at most, evenly spaced; None for no limit
    timeout: float  # of a whole request
    retries: int  # attempts after the first, of those that reached the server
    backoff: float  # before the first of these, doubled for each further one
    patience: float  # without any answer, after which the judge is taken for down

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= _MAX_CONCURRENCY:
            raise UserError(
                f"the judge's concurrency must be from 1 to {_MAX_CONCURRENCY}, but it is "
                f"{self.concurrency}"
            )
        if self.retries < 0:
            raise UserError(f"the judge's retries must be 0 or more, but they are {self.retries}")
        for name in ("requests_per_minute", "timeout", "backoff"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"the judge's {name} must be a number above 0, but it is {value}")
        rate, patience = self.requests_per_minute, self.patience
        if rate is not None and 60 / rate >= patience:
            raise UserError(
                f"the judge's patience of {patience:g} s would end before the next of {rate:g} "
                "requests_per_minute: raise it"
            )
        if not self.timeout <= patience < math.inf:
            raise UserError(
                f"the judge's patience must be at least its timeout, {self.timeout:g} s, "
                f"but it is {patience:g} s"
            )

    def wait(self, attempts: int, retry_after: float | None) -> float:
        """Seconds before another attempt: exponential with jitter, or what the server asks for.

        Of that, ``retry_after``, half of the patience at most is granted.
        """
        longest = min(_LONGEST_BACKOFF, self.backoff * 2.0 ** min(attempts - 1, 30))
        return max(longest * _JITTER.uniform(0.5, 1), min(retry_after or 0.0, self.patience / 2))


# For the caller's thread: what it is to do, what has become of a question, that all has ended.
_Item = Callable[[], None] | tuple[int, Completion | Failure] | Future[None]


@final
@dataclass(eq=False)
class RequestScheduler:
    """One call: questions go out, completions come back.

    Each question is a coroutine in the client's event loop. Before each attempt it waits for the
    caller's thread, where all is counted and decided; so nothing is sent while nobody reads.
    """

    client: JudgeClient
    limits: RateLimits
    state: JudgeState  # of earlier calls; it goes on
    ledger: Ledger  # counts questions, requests, retries and tokens
    questions: Sequence[Question]
    body: Callable[[Question], Mapping[str, Any]]  # of the request for a question

    def __post_init__(self) -> None:
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self._prompts = [question.prompt_key for question in self.questions]
        self._waiting = Counter(self._prompts)  # how many questions of each are not settled
        self._open: set[int] = set()  # questions that were sent and are not settled
        self._measured = 0.0  # the time up to which silence was measured
        self._silent = 0.0  # as the state's, of this call: others may go on in other threads
        self._stop: UserError | None = None  # nothing more is sent
        self._stopped = asyncio.Event()  # the same for the event loop
        self._gives_up = False  # and what is on its way is not waited for
        self._turn = asyncio.Lock()  # to be the next that is sent, at a limited rate

    def run(self) -> Iterator[tuple[int, Completion | None]]:
        """Ask all questions.

        Yields:
            number of a question with its completion, None where it could not be had.

        Raises:
            OracleStoppedError: the judge is down, or a budget is spent; after all completions that
                were had.
            UserError: the endpoint refuses all questions alike; after these too.
        """
        if not self.questions:
            return
        self._session = self.client.session()  # takes a second, which is no silence of the judge's
        self._silent = self.state.silent
        asking: Future[None] | None = None
        try:
            asking = asyncio.run_coroutine_threadsafe(self._ask_all(), self._session.loop)
            asking.add_done_callback(self._inbox.put)
            self._measured = time.monotonic()
            yield from self._settled(asking)
        finally:
            if asking is not None and not self._session.is_closed:  # as at the interpreter's end
                asking.cancel()
            self.state.silent = self._silent
        if self._gives_up:
            self.state.silent = 0.0  # who goes on later has all patience again
        if self._stop is not None:
            raise self._stop
        try:
            asking.result()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    # ---- in the caller's thread ----

    def _settled(self, asking: Future[None]) -> Iterator[tuple[int, Completion | None]]:
        """Do what there is to do, and hand out what is settled, until all is or patience ends."""
        while (item := self._next()) is not asking:
            if item is None:
                self._give_up(self._outage())
                return
            if isinstance(item, tuple):
                number, outcome = item
                if self._is_settled(number, outcome):
                    yield number, outcome if isinstance(outcome, Completion) else None
                    self._measured = time.monotonic()  # the reader's time is no silence either
            elif callable(item):
                item()

    def _next(self) -> _Item | None:
        """What comes next from the event loop; None where nothing does before patience ends."""
        timeout = 0.0 if self._gives_up else math.inf
        if self._open and self._stop is None:
            timeout = max(0.0, self.limits.patience - self._silent)
        item = self._received(timeout)
        now = time.monotonic()
        self._silent += now - self._measured if self._open else 0.0
        self._measured = now
        return item

    def _received(self, timeout: float) -> _Item | None:
        """The next item; None where there is none within that many seconds."""
        ends = time.monotonic() + timeout
        while True:
            left = ends - time.monotonic()
            try:
                return self._inbox.get(timeout=min(max(0.0, left), _LONGEST_WAIT))
            except Empty:
                if left <= _LONGEST_WAIT:
                    return None

    def _decide(self, number: int, attempts: int, allowed: Future[bool | None]) -> None:
        """Count a request that is to be sent, and allow it if a budget and patience do.

        The result is None where a call in another thread has just sent one, and the rate allows no
        other yet.
        """
        if not allowed.set_running_or_notify_cancel():
            return
        if self._stop is None and self._silent > self.limits.patience:
            self._give_up(self._outage())
        if self._stop is None and (rate := self.limits.requests_per_minute):
            now = time.monotonic()
            if now < self.state.next_send:
                allowed.set_result(None)
                return
            self.state.next_send = now + 60 / rate
        if self._stop is None:
            asked = "swapped" if self.questions[number].again else "queries"
            self._charge(requests=1, **{"retries" if attempts > 1 else asked: 1})
        if self._stop is None:
            self._open.add(number)
        allowed.set_result(self._stop is None)

    def _is_settled(self, number: int, outcome: Completion | Failure) -> bool:
        """Count what an outcome has cost; False where it is the endpoint's refusal of all."""
        self._open.discard(number)
        prompt = self._prompts[number]
        self._waiting[prompt] -= 1
        if not self._waiting[prompt]:
            del self._waiting[prompt]
        if isinstance(outcome, Completion):
            self._silent = 0.0
            self.state.answer()
            self._charge(prompt_tokens=outcome.prompt_tokens, reply_tokens=outcome.reply_tokens)
        elif not outcome.may_pass:
            self._silent = 0.0
            if self.state.refusal(prompt, outcome.status, self._waiting.keys()):
                self._give_up(self._refusal(outcome))
                return False
        return True

    def _charge(self, **counts: int) -> None:
        """Count; what a budget does not allow ends the asking."""
        try:
            self.ledger.charge(**counts)
        except OracleStoppedError as error:
            self._stop = self._stop or error
            self._session.loop.call_soon_threadsafe(self._stopped.set)

    def _give_up(self, error: UserError) -> None:
        """End the asking: what is there is handed out, and nothing is waited for."""
        self._gives_up = True
        self._stop = self._stop or error

    def _outage(self) -> OracleStoppedError:
        return OracleStoppedError(
            f"the judge at {self.client.endpoint.base_url} has given no answer for "
            f"{self.limits.patience:g} s (its last words: {self.state.last_error or 'none'}): "
            "see that it runs, and go on"
        )

    def _refusal(self, failure: Failure) -> UserError:
        endpoint = self.client.endpoint
        where, said = f"the judge at {endpoint.base_url}", f"({failure.message})"
        if self.state.has_answers:  # what was had and trained is kept
            number = len(self.state.refused)
            last = "its last question" if number == 1 else f"its last {number} questions"
            return OracleStoppedError(f"{where} has refused {last} {said}: mend that, and go on")
        check = "base_url, model and what the server can do"
        if failure.status in (401, 403):
            check = f"the key in {endpoint.api_key_env}" if endpoint.api_key_env else "api_key_env"
        return UserError(f"{where} refuses every question {said}: check {check}")

    # ---- in the thread of the event loop ----

    async def _ask_all(self) -> None:
        slots = asyncio.Semaphore(self.limits.concurrency)
        async with asyncio.TaskGroup() as questions:
            for number in self._in_turn():
                await slots.acquire()
                if self._stopped.is_set():
                    break
                question = questions.create_task(self._ask(number))
                question.add_done_callback(lambda _: slots.release())

    def _in_turn(self) -> list[int]:
        """Questions in the order of asking: before any answer first one of each of a few prompts.

        Whether a judge refuses one prompt or all is so known from the first few requests.
        """
        if self.state.has_answers:
            return list(range(len(self.questions)))
        first = {prompt: number for number, prompt in reversed(list(enumerate(self._prompts)))}
        few = sorted(first.values())[:FEW]
        return few + [number for number in range(len(self.questions)) if number not in few]

    async def _ask(self, number: int) -> None:
        """Ask until there is a completion, or a failure that stays."""
        body = self.body(self.questions[number])
        unreached = 0  # attempts that no server has seen: an outage is waited for
        for attempts in count(1):
            if not await self._is_allowed(number, attempts):
                return
            outcome = await self._session.post(body)
            if isinstance(outcome, Failure):
                self.state.last_error = outcome.message
                unreached += outcome.unreachable
                if outcome.may_pass and attempts - unreached <= self.limits.retries:
                    await self._pause(self.limits.wait(attempts, outcome.retry_after))
                    continue
            self._inbox.put((number, outcome))
            return

    async def _is_allowed(self, number: int, attempts: int) -> bool:
        """Wait for the rate and for the caller's thread."""
        async with self._turn if self.limits.requests_per_minute else nullcontext():
            while True:
                await self._pause(self.state.next_send - time.monotonic())
                allowed: Future[bool | None] = Future()
                self._inbox.put(partial(self._decide, number, attempts, allowed))
                if (is_allowed := await asyncio.wrap_future(allowed)) is not None:
                    return is_allowed

    async def _pause(self, seconds: float) -> None:
        """Sleep, but no longer than something may still be sent."""
        if seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopped.wait()
