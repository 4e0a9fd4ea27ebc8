"""`VoteStore`: questions for people and their votes, in one SQLite file for several processes.

A vote is in the file when `VoteStore.vote` returns, and a process that is killed then loses none.
What a power cut takes are the votes since the last `VoteStore.checkpoint`.
"""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from nlhf_zoo.errors import UserError
from nlhf_zoo.people import rows
from nlhf_zoo.people.pairs import (
    CHOICES,
    Choice,
    Found,
    Pair,
    Progress,
    Shown,
    Tally,
    Vote,
    VoteRefusedError,
    checked_person,
    conversation_of,
)
from nlhf_zoo.people.schema import connect, in_words
from nlhf_zoo.people.turns import Turn, give_back, note_late, person_of

_LAST = 99  # votes of which the median tells how long one takes
_OTHER: dict[Choice, Choice] = {"first": "second", "second": "first"}
_MOST_WANTED = 10_000
_inherited: list[sqlite3.Connection] = []  # of a parent process: to close them would be its end


@final
class VoteStore:
    """Questions and votes.

    It may be used from several threads, one at a time, and from a process that was forked.

    Args:
        path: the file; it is made where there is none.
        must_exist: refuse a file that is not there, or empty.
        clock: Unix time in seconds.

    Raises:
        UserError: the file is none of ours, of another version, or cannot be written to; from
            every method, too, where it can no longer be.
    """

    def __init__(
        self, path: Path, must_exist: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(os.path.abspath(path))
        self._clock = clock
        self._lock = threading.RLock()
        self._is_within = False
        self._process = os.getpid()
        self._connection = connect(self.path, must_exist)
        (self._salt,) = self._connection.execute("SELECT salt FROM salt").fetchone()

    @property
    def token(self) -> str:
        """What a page must have to ask this file; random, and the same as long as the file is."""
        return hashlib.blake2b(b"token", key=self._salt, digest_size=16).hexdigest()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All inside is in the file, or nothing; what is inside another belongs to that one."""
        with self._lock:
            if self._is_within:
                yield self._connection
                return
            with in_words(self.path):
                self._follow_fork()
                db = self._connection
                db.execute("BEGIN IMMEDIATE")
                self._is_within = True
                try:
                    yield db
                    db.commit()
                except BaseException:
                    db.rollback()
                    raise
                finally:
                    self._is_within = False

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._is_within:
                yield self._connection
                return
            with in_words(self.path):
                self._follow_fork()
                yield self._connection

    def _follow_fork(self) -> None:
        if self._process != os.getpid():
            _inherited.append(self._connection)
            self._process = os.getpid()
            self._connection = connect(self.path, must_exist=True)

    def put(
        self, pairs: Sequence[Pair], votes: int = 1, priority: float | Sequence[float] = 0.0
    ) -> list[int]:
        """Ask about pairs, all of them or none.

        A pair that is there, in either order, keeps its number, its order and its votes; it is
        opened, and what is wanted of it and its priority are raised, never lowered.

        Args:
            pairs: what is asked.
            votes: how many are wanted of each.
            priority: of all, or of each; a higher one is shown earlier, of equal ones what was
                asked first.

        Returns:
            the numbers of the questions, in the order of the pairs.

        Raises:
            UserError: the two responses are equal, or a number is none that can be wanted.
        """
        priorities = [priority] * len(pairs) if isinstance(priority, int | float) else priority
        if len(priorities) != len(pairs):
            raise UserError(f"there are {len(priorities)} priorities for {len(pairs)} pairs")
        if not 1 <= votes <= _MOST_WANTED:
            raise UserError(f"from 1 to {_MOST_WANTED} votes may be wanted of a pair, not {votes}")
        for pair, one in zip(pairs, priorities, strict=True):
            if not math.isfinite(one):
                raise UserError(f"a priority must be a number, but one is {one}")
            if pair.first == pair.second:
                raise UserError("a pair has two equal responses: there is nothing to choose")
        with self.transaction() as db:
            has_people = db.execute("SELECT 1 FROM people LIMIT 1").fetchone() is not None
            asked = zip(pairs, priorities, strict=True)
            return [rows.put(db, pair, votes, -float(one), has_people) for pair, one in asked]

    @property
    def name(self) -> str:
        """What no other file has, wherever this one lies."""
        return hashlib.blake2b(self._salt, digest_size=8).hexdigest()

    def find(self, pairs: Iterable[Pair]) -> list[Found | None]:
        """The question about each pair; None where there is none."""
        query = (
            "SELECT number, t.first FROM questions JOIN texts AS t USING (number) WHERE digest = ?"
        )
        with self._reading() as db:
            rows = [(pair, db.execute(query, [pair.digest]).fetchone()) for pair in pairs]
        return [None if row is None else Found(row[0], row[1] == pair.first) for pair, row in rows]

    def tallies(self, numbers: Iterable[int]) -> list[Tally]:
        """What was said of questions so far, in the order of their numbers as given.

        Raises:
            UserError: there is no such question.
        """
        query = "SELECT first, second, neither, skip, wanted FROM questions WHERE number = ?"
        with self._reading() as db:
            return [Tally(*rows.row_of(db, self.path, query, number)) for number in numbers]

    def close(self, numbers: Iterable[int]) -> None:
        """Show questions no more; their votes stay."""
        with self.transaction() as db:
            for number in numbers:
                db.execute("UPDATE questions SET closed = 1 WHERE number = ?", [number])

    def open(self, numbers: Iterable[int]) -> None:
        """Show questions again that were closed, as long as votes are wanted of them."""
        with self.transaction() as db:
            for number in numbers:
                db.execute("UPDATE questions SET closed = 0 WHERE number = ?", [number])
                note_late(db, number)

    def next(self, person: str, besides: Collection[int] = ()) -> Shown | None:
        """The question that a person is to answer; None where there is none for now.

        It is never one on which that person has voted or passed. It is kept for that person for
        some minutes: others are shown it only where more votes are wanted of it. Asked again, as
        after a page was loaded anew, it is the same one, with the same seats.

        Args:
            person: who answers.
            besides: questions which that person has before them.
        """
        with self.transaction() as db:
            who = person_of(db, checked_person(person))
            number = Turn(db, who, self._clock(), besides).take()
            return None if number is None else self._shown(db, who, number)

    def shown(self, person: str, number: int) -> Shown:
        """A question as a person sees it."""
        with self.transaction() as db:
            return self._shown(db, person_of(db, checked_person(person)), number)

    def vote(
        self,
        person: str,
        number: int,
        choice: Choice,
        seconds: float | None = None,
        is_seated: bool = False,
    ) -> None:
        """Keep a vote; once, however often it comes.

        Args:
            person: who gives it.
            number: of the question.
            choice: first and second as the file has them.
            seconds: for which the pair was looked at.
            is_seated: first and second are seats, as that person was shown them.

        Raises:
            VoteRefusedError: that person has said something else of the question and not undone
                it, or there is no such question or choice.
        """
        if choice not in CHOICES:
            raise VoteRefusedError(f"{choice!r} is no choice: it is one of {', '.join(CHOICES)}")
        if seconds is not None and not 0 <= seconds < math.inf:
            raise VoteRefusedError(f"a vote takes no {seconds} seconds")
        with self.transaction() as db:
            who = person_of(db, checked_person(person))
            before = rows.said(db, self.path, who, number)
            if is_seated and self._mirrored(who, number):
                choice = _OTHER.get(choice, choice)
            if before == choice:
                return
            if before is not None:
                raise VoteRefusedError(
                    f"{person} has said {before!r} of question {number}: undo that vote first"
                )
            row = [number, who, choice, seconds, self._clock()]
            insert = "INSERT INTO votes (question, person, choice, seconds, time) VALUES "
            db.execute(insert + "(?, ?, ?, ?, ?)", row)
            rows.count(db, who, number, choice, 1)
            db.execute("DELETE FROM leases WHERE number = ? AND person = ?", [number, who])

    def undo(self, person: str, number: int | None = None) -> int | None:
        """Take back a person's last vote, which stays in the file as undone.

        The question comes back to that person as the next, also where it was closed meanwhile.

        Args:
            person: who gave it.
            number: of the question on which it must be; then a request that is sent twice takes
                back one vote alone.

        Returns:
            the question's number; None where there is nothing to take back.
        """
        last = "SELECT vote, question, choice FROM votes WHERE person = ? AND undone IS NULL"
        with self.transaction() as db:
            who = person_of(db, checked_person(person))
            found = db.execute(last + " ORDER BY vote DESC LIMIT 1", [who]).fetchone()
            if found is None or number not in (None, found[1]):
                return None
            vote, question, choice = found
            now = self._clock()
            db.execute("UPDATE votes SET undone = ? WHERE vote = ?", [now, vote])
            rows.count(db, who, question, choice, -1)
            note_late(db, question)
            give_back(db, who, question, now)
            return int(question)

    def last(self, person: str) -> int | None:
        """The question of a person's last vote that counts."""
        with self._reading() as db:
            query = (
                "SELECT question FROM votes JOIN people USING (person) "
                "WHERE name = ? AND undone IS NULL ORDER BY vote DESC LIMIT 1"
            )
            found = db.execute(query, [checked_person(person)]).fetchone()
            return None if found is None else int(found[0])

    def progress(self) -> Progress:
        """How far people are; as cheap for many questions as for few."""
        with self.transaction() as db:
            counts = self.counts()
            votes = dict(db.execute("SELECT name, votes FROM people ORDER BY name"))
            last = "SELECT seconds FROM votes ORDER BY vote DESC LIMIT ?"
            taken = [one for (one,) in db.execute(last, [_LAST]) if one is not None]
        return Progress(*counts, votes, statistics.median(taken) if taken else None)

    def counts(self) -> tuple[int, int, int, int]:
        """Of `progress` what a vote changes: questions, open, answered, missing."""
        with self._reading() as db:
            query = "SELECT questions, open, answered, missing FROM counts"
            questions, opened, answered, missing = db.execute(query).fetchone()
            return questions, opened, answered, missing

    def version(self) -> int:
        """A number that grows with each vote and each undo of any process; cheap to ask."""
        with self._reading() as db:
            return int(db.execute("SELECT version FROM counts").fetchone()[0])

    def changed(self) -> int:
        """A number that changes when another process has written anything; cheap to ask."""
        with self._reading() as db:
            return int(db.execute("PRAGMA data_version").fetchone()[0])

    def votes(self) -> Iterator[Vote]:
        """All votes in the order in which they came, those that were undone among them."""
        query = (
            "SELECT vote, question, person, name, choice, seconds, time, undone "
            "FROM votes JOIN people USING (person) ORDER BY vote"
        )
        for vote, question, who, name, choice, seconds, at, undone in self._rows(query):
            mirrored = self._mirrored(who, question)
            yield Vote(vote, question, name, choice, seconds, at, mirrored, undone)

    def questions(self) -> Iterator[tuple[int, Pair, Tally]]:
        """All questions by number, with what was said of them."""
        query = (
            "SELECT number, prompt, t.first, t.second, "
            "q.first, q.second, neither, skip, wanted "
            "FROM questions AS q JOIN texts AS t USING (number) ORDER BY number"
        )
        for number, prompt, first, second, *tally in self._rows(query):
            yield number, Pair(conversation_of(prompt), first, second), Tally(*tally)

    def pair(self, number: int) -> Pair:
        """A question's prompt and responses, as the file has them."""
        with self._reading() as db:
            return rows.pair_of(db, self.path, number)

    def checkpoint(self) -> None:
        """Bring what was written onto the disk, where a power cut cannot take it."""
        with in_words(self.path):
            connection = connect(self.path, must_exist=True)  # so that no vote waits for the disk
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                connection.close()

    def end(self) -> None:
        """Close the file; nothing can be asked of this object any more."""
        with self._lock, in_words(self.path):
            if self._process == os.getpid():
                self._connection.close()

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        """Rows of one moment, read beside what is written meanwhile."""
        with in_words(self.path):
            connection = connect(self.path, must_exist=True)
            try:
                yield from connection.execute(query)
            finally:
                connection.close()

    def _shown(self, db: sqlite3.Connection, who: int, number: int) -> Shown:
        return Shown(number, rows.pair_of(db, self.path, number), self._mirrored(who, number))

    def _mirrored(self, who: int, number: int) -> bool:
        """Whether the second response has the first seat: a coin that falls once for each two."""
        coin = hashlib.blake2b(b"%d %d" % (who, number), key=self._salt, digest_size=1)
        return bool(coin.digest()[0] & 1)
