"""Simulated people: threads that are shown pairs of a file of votes, and choose by a rule."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from nlhf_zoo.people import Choice, Pair, VoteStore
from nlhf_zoo.people.server import PeopleServer

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

    def leave(self) -> None:
        """Vote no more, and be waited for by nobody."""
        self._ended.set()

    def __exit__(self, *_: object) -> None:
        self.leave()
        for thread in self._threads:
            thread.join(10)

    def told(self) -> list[str]:
        """What they were shown, as texts."""
        return [
            " | ".join([*(one["content"] for one in pair.conversation), pair.first, pair.second])
            for _, pair in self.seen
        ]

    def _file_is_there(self) -> bool:
        """Wait for the file; false where they leave before there is one."""
        while not self._path.exists():
            if self._ended.wait(0.005):
                return False
        return True

    def _chosen(self, person: str, pair: Pair) -> Choice | None:
        """What somebody says of a pair, after a look at it; None by one who leaves."""
        if (choice := self._choose(person, pair)) is not None:
            time.sleep(self._pause)
            self.seen.append((person, pair))
        return choice

    def _vote(self, person: str) -> None:
        if not self._file_is_there():
            return
        store = VoteStore(self._path)
        while not self._ended.is_set():
            if (shown := store.next(person)) is None:
                self._ended.wait(0.005)
                continue
            if (choice := self._chosen(person, shown.pair)) is None:
                break
            store.vote(person, shown.number, choice, 0.0)
        store.end()


class AtThePage(Voters):
    """The same people, through the interface of the page, whose server runs here."""

    _server: PeopleServer | None = None
    _making = threading.Lock()

    def __exit__(self, *given: object) -> None:
        super().__exit__(*given)
        if self._server is not None:
            self._server.close()
            self._server.store.end()

    def _vote(self, person: str) -> None:
        if not self._file_is_there():
            return
        with self._making:
            self._server = self._server or PeopleServer(VoteStore(self._path))
        connection = HTTPConnection("127.0.0.1", self._server.port)
        ask = partial(_asked, connection, self._server, person)
        given = ask("next", wait=0.1)
        while not self._ended.is_set():
            if (shown := given["pair"]) is None:
                given = ask("next", wait=0.1)
                continue
            choice = self._chosen(person, Pair(shown["conversation"], *shown["responses"]))
            if choice is None:
                break
            given = ask("vote", number=shown["number"], choice=choice, seconds=self._pause)
        connection.close()


def _asked(
    connection: HTTPConnection, server: PeopleServer, person: str, what: str, **given: Any
) -> dict[str, Any]:
    """What the page is answered."""
    headers = {"Authorization": f"Bearer {server.store.token}", "Content-Type": "application/json"}
    body = json.dumps({"person": person, **given})
    connection.request("POST", f"/api/{what}", body, headers)
    answer = connection.getresponse()
    found: dict[str, Any] = json.loads(answer.read())
    assert answer.status == 200, found
    return found
