"""SIGTERM and SIGINT: a command ends where nothing is lost by it, and says so in one sentence."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

# What asks for an end: a scheduler or `kill`, and Ctrl+C.
ENDING = (signal.SIGTERM, signal.SIGINT)


class StoppedBySignal(SystemExit):  # no error
    """The end of a process that was asked for it; the exit code is 128 + the signal's number.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signal.Signals(signum)

    def __str__(self) -> str:
        return f"stopped by {self.signum.name}"


class SignalWatch:
    """Remembers the first signal that asks for an end, and raises it where that does no harm.

    Python calls a handler between any two instructions of the main thread: an exception in the
    middle of an optimiser's step would leave half of it done.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._raises = False
        self._first: Callable[[int], Any] | None = None
        self._again: Callable[[int], Any] | None = None
        self._process = 0

    def install(
        self,
        signals: Sequence[signal.Signals] = ENDING,
        first: Callable[[int], Any] | None = None,
        again: Callable[[int], Any] | None = None,
    ) -> dict[signal.Signals, Any]:
        """Take signals over, from now on; outside the main thread nothing is installed.

        One that is ignored stays so, as Ctrl+C does for what a shell runs in the background. A
        process that is forked later ends by a signal as if nothing had been installed.

        Args:
            signals: which.
            first: called with the first signal.
            again: called with each further one; None takes no notice of these.

        Returns:
            the handlers that were there.
        """
        self.received, self._first, self._again = None, first, again
        self._process = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return {}
        heard = [signum for signum in signals if signal.getsignal(signum) is not signal.SIG_IGN]
        return {signum: signal.signal(signum, self._hear) for signum in heard}

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise a signal inside, wherever it comes; and one that came before at the beginning.

        Raises:
            StoppedBySignal: there was one.
        """
        self._raises = True
        try:
            if self.received is not None:
                raise StoppedBySignal(self.received)
            yield
        finally:
            self._raises = False

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif self.received is None:
            self.received = signal.Signals(signum)
            if self._first is not None:
                self._first(signum)
            if self._raises:
                raise StoppedBySignal(signum)
        elif self._again is not None:
            self._again(signum)


def end_at_once(signum: int) -> NoReturn:
    """End this process as it is, with the exit code of a signal."""
    os._exit(128 + signum)


@contextmanager
def ending_at_signals() -> Iterator[None]:
    """End a command by a sentence where a signal asks for it, and at once at a second one.

    Raises:
        SystemExit: there was a signal; with its exit code.
    """
    watch = SignalWatch()
    before = watch.install(again=end_at_once)
    try:
        with watch.raising():
            yield
    except StoppedBySignal as end:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes one says so
            print(f"nlhf: {end}", file=sys.stderr)
        raise SystemExit(end.code) from None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
