"""Rows of the file of questions and votes, within a transaction."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from nlhf_zoo.people.pairs import Pair, VoteRefusedError, conversation_of
from nlhf_zoo.people.turns import note_late


def row_of(db: sqlite3.Connection, path: Path, query: str, number: int) -> tuple[Any, ...]:
    """The row of a question, which there is."""
    found: tuple[Any, ...] | None = db.execute(query, [number]).fetchone()
    if found is None:
        raise VoteRefusedError(f"{path} has no question {number}")
    return found


def pair_of(db: sqlite3.Connection, path: Path, number: int) -> Pair:
    """The prompt and the responses of a question, which there is."""
    query = "SELECT prompt, first, second FROM texts WHERE number = ?"
    prompt, first, second = row_of(db, path, query, number)
    return Pair(conversation_of(prompt), first, second)


def put(db: sqlite3.Connection, pair: Pair, votes: int, rank: float, has_people: bool) -> int:
    """Ask about one pair; its number."""
    written = db.execute(
        "INSERT INTO questions (digest, rank, wanted) VALUES (?, ?, ?) "
        "ON CONFLICT (digest) DO UPDATE SET closed = 0, "
        "rank = min(rank, excluded.rank), wanted = max(wanted, excluded.wanted) "
        "WHERE closed OR excluded.rank < rank OR wanted < excluded.wanted RETURNING number",
        [pair.digest, rank, votes],
    ).fetchall()
    if not written:
        query = "SELECT number FROM questions WHERE digest = ?"
        return int(db.execute(query, [pair.digest]).fetchone()[0])
    ((number,),) = written
    texts = [number, pair.prompt, pair.first, pair.second]
    db.execute("INSERT OR IGNORE INTO texts VALUES (?, ?, ?, ?)", texts)
    if has_people:
        note_late(db, number)
    return int(number)


def said(db: sqlite3.Connection, path: Path, who: int, number: int) -> str | None:
    """What a person has said of a question, which there is."""
    query = (
        "SELECT (SELECT choice FROM votes WHERE question = number AND person = ? "
        "AND undone IS NULL) FROM questions WHERE number = ?"
    )
    found: tuple[str | None] | None = db.execute(query, [who, number]).fetchone()
    if found is None:
        raise VoteRefusedError(f"{path} has no question {number}")
    return found[0]


def count(db: sqlite3.Connection, who: int, number: int, choice: str, sign: int) -> None:
    """Enter a vote into the sums, or take it out."""
    db.execute(f"UPDATE questions SET {choice} = {choice} + ? WHERE number = ?", [sign, number])
    if choice != "skip":
        db.execute("UPDATE people SET votes = votes + ? WHERE person = ?", [sign, who])
