"""Whose turn a question is: what one person is shown next, found by steps in an index.

A question is kept for who was shown it by a *lease*, so that two people are not both shown a pair
of which one vote is wanted; one that has run out keeps nobody from it. Those who answer late are
heard all the same.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from itertools import chain
from typing import final

from nlhf_zoo.people.schema import OPEN

LEASE = 180.0  # seconds
_IS_SEEN = (
    "EXISTS (SELECT 1 FROM votes WHERE question = q.number AND person = :person AND undone IS NULL)"
)
_IS_FREE = (
    "first + second + neither + (SELECT count(*) FROM leases AS l WHERE l.number = q.number "
    "AND l.person <> :person AND l.until > :now) < wanted"
)
_HELD = (
    f"SELECT place < 0, place, q.number, ({OPEN}) AND NOT {_IS_SEEN}, {_IS_FREE} "
    "FROM leases JOIN questions AS q USING (number) WHERE person = :person ORDER BY place"
)
_LATE = (
    f"SELECT late.rank, q.number, ({OPEN}) AND NOT {_IS_SEEN}, {_IS_FREE} "
    "FROM late JOIN questions AS q USING (number) WHERE person = :person "
    "ORDER BY late.rank, late.number"
)
_OPEN_ONES = (
    f"SELECT rank, number, NOT {_IS_SEEN}, {_IS_FREE} FROM questions AS q INDEXED BY waiting "
    f"WHERE {OPEN} AND "
)
# In two parts, for of (rank, number) > (a, b) SQLite takes but the first to the index.
_OF_SAME_RANK = _OPEN_ONES + "rank = :rank AND number > :number ORDER BY number"
_OF_LATER_RANKS = _OPEN_ONES + "rank > :rank ORDER BY rank, number"


def person_of(db: sqlite3.Connection, name: str) -> int:
    """The number of a person, who is entered where the name is new."""
    found = db.execute("SELECT person FROM people WHERE name = ?", [name]).fetchone()
    if found is None:
        query = "INSERT INTO people (name) VALUES (?) RETURNING person"
        (found,) = db.execute(query, [name]).fetchall()
    return int(found[0])


def note_late(db: sqlite3.Connection, number: int) -> None:
    """Note a question for all whose cursor is past its place."""
    db.execute(
        "INSERT OR IGNORE INTO late SELECT p.person, q.rank, q.number "
        "FROM questions AS q JOIN people AS p ON (q.rank, q.number) <= (p.rank, p.number) "
        "WHERE q.number = ?",
        [number],
    )


def give_back(db: sqlite3.Connection, person: int, number: int, now: float) -> None:
    """Keep a question whose vote was undone for that person, as the next, open or not."""
    db.execute("DELETE FROM leases WHERE number = ? AND person = ?", [number, person])
    db.execute(
        "INSERT INTO leases (person, place, number, until) "
        "SELECT ?1, min(0, coalesce(min(place), 0)) - 1, ?2, ?3 FROM leases WHERE person = ?1",
        [person, number, now + LEASE],
    )


@final
class Turn:
    """The search for what a person is shown next, within a transaction.

    Args:
        db: the file.
        person: the number of who asks.
        now: Unix time.
        besides: questions that are not meant.
    """

    def __init__(
        self, db: sqlite3.Connection, person: int, now: float, besides: Collection[int]
    ) -> None:
        self.db = db
        self.given = {"person": person, "now": now}
        self.besides = besides

    def take(self) -> int | None:
        """The number of the question, which is kept for this person from now on."""
        number = self._held()
        for search in (self._late, self._following):
            number = search() if number is None else number
        if number is not None:
            self.db.execute(
                "INSERT INTO leases (person, place, number, until) "
                "SELECT :person, max(0, coalesce(max(place), 0)) + 1, :number, :until "
                "FROM leases WHERE person = :person "
                "ON CONFLICT (number, person) DO UPDATE SET until = excluded.until",
                {**self.given, "number": number, "until": self.given["now"] + LEASE},
            )
        return number

    def _held(self) -> int | None:
        """One that was shown before and not answered; what is no longer asked is given up."""
        number, gone = None, []
        for is_undone, place, one, is_asked, is_free in self.db.execute(_HELD, self.given):
            if not (is_undone or is_asked):
                gone.append([self.given["person"], place])
            elif one not in self.besides and (is_undone or is_free):
                number = int(one)
                break
        if gone:
            self.db.executemany("DELETE FROM leases WHERE person = ? AND place = ?", gone)
        return number

    def _late(self) -> int | None:
        """One that came to lie before the cursor, or was passed because others had it."""
        number, gone = None, []
        for rank, one, is_asked, is_free in self.db.execute(_LATE, self.given):
            is_meant = is_asked and is_free and one not in self.besides
            if is_meant or not is_asked:
                gone.append([self.given["person"], rank, one])
            if is_meant:
                number = int(one)
                break
        if gone:
            delete = "DELETE FROM late WHERE person = ? AND rank = ? AND number = ?"
            self.db.executemany(delete, gone)
        return number

    def _following(self) -> int | None:
        """The first behind the cursor, which moves there."""
        query = "SELECT rank, number FROM people WHERE person = :person"
        rank, number = self.db.execute(query, self.given).fetchone()
        found, passed = None, []
        start = {**self.given, "rank": rank, "number": number}
        following = chain.from_iterable(
            self.db.execute(query, start) for query in (_OF_SAME_RANK, _OF_LATER_RANKS)
        )
        for rank, number, is_unseen, is_free in following:
            if is_unseen and is_free and number not in self.besides:
                found = int(number)
                break
            if is_unseen:
                passed.append([self.given["person"], rank, number])
        if passed:
            self.db.executemany("INSERT OR IGNORE INTO late VALUES (?, ?, ?)", passed)
        if (rank, number) != (start["rank"], start["number"]):
            move = "UPDATE people SET rank = ?, number = ? WHERE person = ?"
            self.db.execute(move, [rank, number, self.given["person"]])
        return found
