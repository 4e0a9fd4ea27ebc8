"""Waiting for people: where they vote, how far they have come, and when nobody does any more."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from nlhf_zoo.errors import OracleStoppedError
from nlhf_zoo.people import Progress, VoteStore

_PAUSES = (0.005, 0.25)  # seconds between two looks for votes: the first ones, and the longest
_MINUTE, _HOUR = 60, 3600
_SAID: set[str] = set()  # the files of which this process has said where to vote


class Waiting:
    """Waits for votes, and shows on standard error how many pairs are answered of those asked.

    Of several processes of a machine the first one shows it. It says once where people vote.

    Args:
        store: of the votes.
        total: pairs that are asked about.
        timeout: seconds without a vote that are too many; None for no limit.
    """

    def __init__(self, store: VoteStore, total: int, timeout: float | None) -> None:
        self._store, self._total = store, total
        self._timeout = math.inf if timeout is None else timeout
        self._version = -1
        self._votes = -1  # of all people, at the last look
        self._last = time.monotonic()  # when one came
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        self._version = self._store.version()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def await_votes(self, left: int) -> None:
        """Return when there is something new, though it may be no vote.

        Args:
            left: pairs that are not answered.

        Raises:
            OracleStoppedError: there was no vote for too long.
        """
        self._show(left)
        pause, longest = _PAUSES
        while (version := self._store.version()) == self._version:
            if time.monotonic() - self._last > self._timeout:
                raise OracleStoppedError(
                    f"nobody has voted for {self._timeout:g} seconds, and {left} of {self._total} "
                    f"pairs are not answered: have people vote by `{command(self._store)}`, and go "
                    "on from the checkpoint"
                )
            time.sleep(pause)
            pause = min(1.3 * pause, longest)
        self._version = version

    def _show(self, left: int) -> None:
        progress = self._store.progress()
        if (votes := sum(progress.votes.values())) != self._votes:
            self._votes, self._last = votes, time.monotonic()
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return
        if self._bar is None:
            self._say()
            self._bar = tqdm(
                total=self._total,
                bar_format="{n_fmt} of {total_fmt} pairs{postfix} |{bar:30}|",
                file=sys.stderr,
                leave=False,
            )
        self._bar.n = self._total - left
        self._bar.set_postfix_str(said(progress))

    def _say(self) -> None:
        """Say where people vote, once for each file."""
        if (path := str(self._store.path)) not in _SAID:
            _SAID.add(path)
            print(f"People are asked: run `{command(self._store)}`.", file=sys.stderr)


def command(store: VoteStore) -> str:
    """The command that shows people the questions of a file."""
    return f"nlhf ask {shlex.quote(str(store.path))}"


def said(progress: Progress) -> str:
    """How many people vote, and for how long it may go on, in words."""
    people = sum(votes > 0 for votes in progress.votes.values())
    words = [] if not people else ["1 person" if people == 1 else f"{people} people"]
    if people and progress.seconds is not None:
        words.append(about(progress.missing * progress.seconds / people))
    return ", ".join(words)


def about(seconds: float) -> str:
    """A time in words, by one figure.

    Example:
        >>> about(20), about(250), about(3 * 3600)
        ('less than a minute', 'about 4 minutes', 'about 3 hours')
    """
    if seconds < _MINUTE:
        return "less than a minute"
    size, name = (_HOUR, "hour") if seconds >= 1.5 * _HOUR else (_MINUTE, "minute")
    number = round(seconds / size)
    return f"about {number} {name}{'' if number == 1 else 's'}"
