"""The file of questions and votes: its tables, and how it is opened.

The order in which questions are shown is (rank, number), rank = -priority. Each person has a
*cursor* in that order; what lies before it has been looked at for that person. What comes to lie
before it later (a new question of a higher priority, one that is open again) and what was passed
because others had it is in ``late``. So the next question of a person is found by a step in an
index, however many votes that person has given.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nlhf_zoo.errors import UserError, cause

APPLICATION = 0x6E6C6866  # "nlhf", by which a file of ours is known
VERSION = 1
_LONGEST_LOG = 16_000  # pages
_PATIENCE = 30.0  # seconds to wait for another process that writes
# A question that is shown. SQLite compares it with the index word by word, and turns a `<` around.
OPEN = "closed = 0 AND wanted > first + second + neither"

_SCHEMA = f"""
CREATE TABLE questions (
    number INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    rank REAL NOT NULL,
    wanted INTEGER NOT NULL,
    closed INTEGER NOT NULL DEFAULT 0,
    first INTEGER NOT NULL DEFAULT 0,
    second INTEGER NOT NULL DEFAULT 0,
    neither INTEGER NOT NULL DEFAULT 0,
    skip INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX waiting ON questions (rank, number) WHERE {OPEN};
CREATE TABLE texts (
    number INTEGER PRIMARY KEY,
    prompt TEXT NOT NULL,
    first TEXT NOT NULL,
    second TEXT NOT NULL
);
CREATE TABLE people (
    person INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    votes INTEGER NOT NULL DEFAULT 0,
    rank REAL NOT NULL DEFAULT -9e999,
    number INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE late (
    person INTEGER NOT NULL,
    rank REAL NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (person, rank, number)
) WITHOUT ROWID;
CREATE TABLE leases (
    person INTEGER NOT NULL,
    place INTEGER NOT NULL,
    number INTEGER NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (person, place)
) WITHOUT ROWID;
CREATE UNIQUE INDEX leased ON leases (number, person);
CREATE TABLE votes (
    vote INTEGER PRIMARY KEY,
    question INTEGER NOT NULL REFERENCES questions,
    person INTEGER NOT NULL REFERENCES people,
    choice TEXT NOT NULL CHECK (choice IN ('first', 'second', 'neither', 'skip')),
    seconds REAL,
    time REAL NOT NULL,
    undone REAL
);
CREATE UNIQUE INDEX counted ON votes (question, person) WHERE undone IS NULL;
CREATE INDEX given ON votes (person, vote) WHERE undone IS NULL;
CREATE TABLE counts (
    version INTEGER NOT NULL DEFAULT 0,
    questions INTEGER NOT NULL DEFAULT 0,
    open INTEGER NOT NULL DEFAULT 0,
    answered INTEGER NOT NULL DEFAULT 0,
    missing INTEGER NOT NULL DEFAULT 0
);
INSERT INTO counts DEFAULT VALUES;
CREATE TABLE salt (salt BLOB NOT NULL);
CREATE TRIGGER asked AFTER INSERT ON questions BEGIN
    UPDATE counts SET questions = questions + 1, open = open + 1, missing = missing + new.wanted;
END;
CREATE TRIGGER moved AFTER UPDATE OF wanted, closed, first, second, neither ON questions BEGIN
    UPDATE counts SET
        open = open + {{new}} - {{old}},
        missing = missing
            + {{new}} * (new.wanted - new.first - new.second - new.neither)
            - {{old}} * (old.wanted - old.first - old.second - old.neither),
        answered = answered
            + (new.first + new.second + new.neither >= new.wanted)
            - (old.first + old.second + old.neither >= old.wanted);
END;
CREATE TRIGGER said AFTER INSERT ON votes BEGIN UPDATE counts SET version = version + 1; END;
CREATE TRIGGER unsaid AFTER UPDATE ON votes BEGIN UPDATE counts SET version = version + 1; END;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""
_IS_OPEN = "({0}.closed = 0 AND {0}.first + {0}.second + {0}.neither < {0}.wanted)"


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """What SQLite raises inside, as a sentence about a file.

    Raises:
        UserError: the file cannot be read or written, or is no SQLite.
    """
    try:
        yield
    except sqlite3.IntegrityError:
        raise  # a mistake of ours
    except sqlite3.DatabaseError as error:
        said = cause(error)
        if "locked" in said:
            said = f"another process has been writing to it for {_PATIENCE:.0f} seconds"
        what = f"{path} cannot be used as a file of questions and votes: {said}"
        raise UserError(what) from error


def connect(path: Path, must_exist: bool = False) -> sqlite3.Connection:
    """A connection to a file of questions and votes, which is made where there is none.

    Raises:
        UserError: it is no such file, of another version, or cannot be read and written.
    """
    if must_exist and not path.is_file():
        raise UserError(f"there is no file {path} of questions and votes")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {path.name}")
    if path.is_file() and not os.access(path, os.W_OK):
        raise UserError(f"{path} cannot be written to: votes could not be kept there")
    with in_words(path):
        # Who locks is in one process a lock of Python's; transactions are begun by hand.
        connection = sqlite3.connect(
            path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(connection, path, must_exist)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, must_exist: bool) -> None:
    if not is_ours(connection, path):
        if must_exist:
            raise UserError(f"{path} holds no questions: it is empty")
        _create(connection, path)
    _to_wal(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    # Where a page is served, a checkpoint each second comes first, and no vote waits for one.
    connection.execute(f"PRAGMA wal_autocheckpoint = {_LONGEST_LOG}")


def is_ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the tables are there; False of a file that is empty."""
    # In one statement: another process may be making them.
    application, version, tables = connection.execute(
        "SELECT (SELECT application_id FROM pragma_application_id),"
        " (SELECT user_version FROM pragma_user_version),"
        " (SELECT count(*) FROM sqlite_master)"
    ).fetchone()
    if not tables and not application:
        return False
    if application != APPLICATION:
        raise UserError(f"{path} is an SQLite file of something else: give another name")
    if version != VERSION:
        raise UserError(
            f"{path} was written in version {version} of its format, and this nlhf reads "
            f"{VERSION}: use the nlhf that wrote it, or export its votes there"
        )
    return True


def _create(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables, unless another process has just done so; all of it or nothing."""
    # A vote touches ten pages: small ones, for each is written whole.
    connection.execute("PRAGMA page_size = 1024")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not is_ours(connection, path):
            schema = _SCHEMA.format(new=_IS_OPEN.format("new"), old=_IS_OPEN.format("old"))
            for statement in _statements(schema):
                connection.execute(statement)
            connection.execute("INSERT INTO salt VALUES (?)", [secrets.token_bytes(16)])
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, for `executescript` would end the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _to_wal(connection: sqlite3.Connection) -> None:
    """Let readers and a writer not wait for each other.

    SQLite does not wait for others in this one case, so this does.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in cause(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)
