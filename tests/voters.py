"""Simulated people: threads that look for pairs in a file of votes, and choose by a rule."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nlhf_zoo.people import Choice, Pair, VoteStore

# What a person says of a pair; None by one who leaves.
Choose = Callable[[str, Pair], Choice | None]


class Voters:
    """People who vote in a file from `__enter__` to `__exit__`, each in a thread of their own.

    Args:
        path: of the file, which need not be there yet.
        choose: what a person says of a pair.
        people: by their names.
        pause: seconds that each looks at a pair.
    """

    def __init__(
        self, path: str | Path, choose: Choose, people: Sequence[str] = ("ada",), pause: float = 0.0
    ) -> None:
        self._path, self._choose, self._pause = Path(path), choose, pause
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._vote, args=(name,), name=name, daemon=True)
            for name in people
        ]
        self.seen: list[tuple[str, Pair]] = []

    def __enter__(self) -> Voters:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(10)

    def told(self) -> list[str]:
        """What they were shown, as texts."""
        return [
            " | ".join([*(one["content"] for one in pair.conversation), pair.first, pair.second])
            for _, pair in self.seen
        ]

    def _vote(self, person: str) -> None:
        while not self._path.exists():
            if self._ended.wait(0.005):
                return
        store = VoteStore(self._path)
        while not self._ended.is_set():
            if (shown := store.next(person)) is None:
                self._ended.wait(0.005)
                continue
            if (choice := self._choose(person, shown.pair)) is None:
                break
            time.sleep(self._pause)
            self.seen.append((person, shown.pair))
            store.vote(person, shown.number, choice, 0.0)
        store.end()
