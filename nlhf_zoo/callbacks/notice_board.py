"""What the processes of a run tell each other: where each stands, and what has ended one of them.

All goes through the store of their process group, which the first process keeps: where that one is
stopped, a call to the store does not return (torch 2.13 heeds no time-out there). Nobody whom the
others need waits for it, therefore: a thread does that asks for all.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

from torch.distributed import DistError, DistNetworkError
from torch.distributed.distributed_c10d import Store

from nlhf_zoo.callbacks.waiting import ENDED, Place
from nlhf_zoo.game.lightning_internals import process_group_store

_KEYS = "nlhf_hang_watch"
_VERDICT = "verdict"


class Verdict(NamedTuple):
    """What has ended a run: the first that any process has come to."""

    by: int  # the process that says so
    node: int  # its machine
    code: int  # the exit code of the run
    where: str  # which process has failed, and in what; empty where it could not say so itself
    words: str

    @property
    def sentence(self) -> str:
        """All of it."""
        return f"{self.where}{self.words}"


class Look(NamedTuple):
    """What was last seen of the others."""

    number: int  # of looks so far
    places: dict[int, Place]
    verdict: Verdict | None
    lost: bool = False  # the first process does not keep the store any more


class NoticeBoard:
    """What is told, and a thread that reads and tells it every so often.

    Args:
        process: the number of this process.
        processes: how many there are.
        place: where this process stands.
        interval: seconds between two looks.
    """

    def __init__(
        self, process: int, processes: int, place: Callable[[], Place], interval: float
    ) -> None:
        timeout = timedelta(seconds=max(5.0, interval))
        self._mine, self._others = (process_group_store(_KEYS, timeout) for _ in range(2))
        self.process, self.interval = process, interval
        self._keys = [str(number) for number in range(processes)]
        self._place = place
        self._telling, self._ended = threading.Lock(), threading.Event()
        self.look = Look(0, {}, None)
        self.put()  # before it may hang
        self._thread = threading.Thread(target=self._ask, name="notice-board", daemon=True)
        self._thread.start()

    def put(self, place: Place | None = None) -> None:
        """Tell at once where this process stands."""
        # One after the other, so that what was told first is not read last. The first process,
        # which keeps the store, may be gone.
        with contextlib.suppress(DistError), self._telling:
            self._mine.set(str(self.process), json.dumps(place or self._place()))

    def decide(self, verdict: Verdict) -> Verdict:
        """Tell what has ended the run; what another process has told before stands."""
        first = [verdict]

        def ask() -> None:
            with contextlib.suppress(DistError):
                told = self._mine.compare_set(_VERDICT, "", json.dumps(verdict))
                first[0] = Verdict(*json.loads(told))

        self._within(max(3.0, 3 * self.interval), ask)
        return first[0]

    def await_others(self, seconds: float) -> None:
        """Wait, in the first process, until all have heard what ends them, or have come to the end.

        The store ends with this process.
        """

        def ask() -> None:
            with contextlib.suppress(DistError):
                while any(json.loads(told)[2] != ENDED for told in self._mine.multi_get(others)):
                    time.sleep(min(0.1, self.interval / 10))

        others = [key for key in self._keys if key != str(self.process)]
        if self.process == 0 and self._mine.check(others):
            self._within(seconds, ask)

    def close(self) -> None:
        """Tell that this process has come to its end; and no more."""
        self._ended.set()
        self._thread.join(2 * self.interval)  # it may be asking a first process that is stopped
        self._within(
            self.interval, lambda: self.put(self._place()._replace(phase=ENDED, exchanges=0))
        )

    def _within(self, seconds: float, do: Callable[[], None]) -> None:
        """Do it, or go on without after so many seconds."""
        thread = threading.Thread(target=do, name="notice", daemon=True)
        thread.start()
        thread.join(seconds)

    def _ask(self) -> None:
        """Tell where this process stands, and look where the others are, again and again."""
        number = 0
        while not self._ended.wait(self.interval):
            number += 1
            try:
                with self._telling:
                    place = self._place()._replace(beat=number)
                    self._mine.set(str(self.process), json.dumps(place))
                self.look = self._read(self._others, number)
            except DistNetworkError:
                self.look = self.look._replace(number=number, lost=True)
                return
            except DistError:
                continue

    def _read(self, store: Store, number: int) -> Look:
        verdict = None
        if store.check([_VERDICT]):
            verdict = Verdict(*json.loads(store.get(_VERDICT)))
        places = {}
        if store.check(self._keys):  # all have begun
            told = store.multi_get(self._keys)
            places = {process: Place(*json.loads(place)) for process, place in enumerate(told)}
        return Look(number, places, verdict)
