"""Answers that were paid for once, in an SQLite file, which several processes share."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from typing_extensions import override

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.oracles.wrappers.base import WrappedTextOracle
from nlhf_zoo.oracles.wrappers.claims import Claims, claiming

_APPLICATION = 0x6E6C6866  # "nlhf": whose file it is, in SQLite's own field for that
_VERSION = 1  # of the table below
_WAIT = 60.0  # seconds to wait while another process writes
_PAUSE = 0.05  # seconds between looks for answers that others ask for
_PATIENCE = 600.0  # seconds of such pauses, after which they are asked for here, too
_KEYS = 500  # of one look-up; SQLite takes 999 at least
_TABLE = """
CREATE TABLE answers (
    question BLOB PRIMARY KEY CHECK (length(question) = 16),
    probability REAL NOT NULL CHECK (probability BETWEEN 0 AND 1),
    ascending INTEGER NOT NULL CHECK (ascending IN (0, 1))
) WITHOUT ROWID
"""


@final
class CachedOracle(WrappedTextOracle):
    """Another oracle's answers, each remembered in a file: no question is paid for twice.

    An answer belongs to the oracle's fingerprint (model, template, options), the prompt and both
    texts. It is on the disk before it is handed on, so that no answer is lost to a run that is
    killed. Answers that could not be had are not remembered: they are asked for again. Several
    processes may share the file, on a disk of their own machine: what one of them is asking the
    others wait for.

    Args:
        oracle: who is asked what is not remembered.
        path: the file, an SQLite database; made if it is not there, in a folder that is.

    Raises:
        UserError: the file cannot be used, or the oracle's answers cannot be remembered.
    """

    may_change_on_resume = frozenset({"path"})

    def __init__(self, oracle: TextOracle, path: str | Path) -> None:
        super().__init__(oracle)
        if learning := [part for part in oracle.modules() if getattr(part, "learns", False)]:
            raise UserError(
                f"{type(learning[0]).__name__} changes its answers as it learns, and a cache would "
                "keep the first ones: put CachedOracle inside of it"
            )
        # Once, and first: an oracle without one is refused before it is paid.
        self._fingerprint = oracle.fingerprint
        self.store = AnswerStore(path)

    @property
    @override
    def fingerprint(self) -> str:
        """The other oracle's, as it was when this one was made."""
        return self._fingerprint

    @override
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Remembered answers first, then the other oracle's as they come.

        Raises:
            UserError: the file cannot be used.
            OracleStoppedError: the file, or the other oracle, cannot be used any more.
        """
        ordered = not self.symmetric
        names = [question.digest(self._fingerprint, ordered) for question in questions]
        with self.store.opened() as store, self.store.claiming() as claims:
            waiting, pauses = list(range(len(names))), 0.0
            while waiting:
                found = store.find([names[number] for number in waiting])
                yield from self._found(questions, names, found)
                waiting = [number for number in waiting if names[number] not in found]
                open_names = [names[number] for number in waiting]
                mine = {*open_names} if pauses > _PATIENCE else claims.take(open_names)
                mine -= store.find(sorted(mine)).keys()  # answered before it could be claimed
                asked = [number for number in waiting if names[number] in mine]
                if asked:
                    yield from self._ask_for(questions, names, asked, store, claims)
                elif waiting and not found:  # others ask, and their answers will be there
                    time.sleep(_PAUSE)
                    pauses += _PAUSE
                waiting = [number for number in waiting if names[number] not in mine]

    def _found(
        self,
        questions: Sequence[Question],
        names: Sequence[bytes],
        found: Mapping[bytes, Remembered],
    ) -> Iterator[Answer]:
        """Answers that are remembered."""
        hits = [number for number, name in enumerate(names) if name in found]
        if hits:
            self.ledger.charge(cache_hits=len(hits))
        for number in hits:
            yield number, found[names[number]].to(questions[number].is_ascending)

    def _ask_for(
        self,
        questions: Sequence[Question],
        names: Sequence[bytes],
        asked: Sequence[int],
        store: OpenStore,
        claims: Claims,
    ) -> Iterator[Answer]:
        """The other oracle's answers to some questions, remembered before they are handed on."""
        for place, answer in self.oracle.answers([questions[number] for number in asked]):
            number = asked[place]
            if 0 <= answer <= 1:  # and not NaN, for no answer
                ascending = questions[number].is_ascending
                answer = store.keep(names[number], Remembered(answer, ascending)).to(ascending)
            claims.give_back(names[number])
            yield number, answer


@dataclass(frozen=True, slots=True)
class Remembered:
    """An answer as it was given: P(first > second) of the question as it was asked."""

    probability: float
    ascending: bool  # whether its first response was the lesser of the two

    def to(self, ascending: bool) -> float:
        """P(first > second) where the first is the lesser one, or the greater one."""
        return self.probability if ascending == self.ascending else 1 - self.probability


class AnswerStore:
    """Answers by the name of their question, in a file that is made at its first use.

    The file has SQLite's write-ahead log. What `OpenStore.keep` has returned is on the disk
    (synchronous = FULL): neither a killed process nor a power cut takes it away. A connection lives
    no longer than one `opened`, so that no process or thread inherits another's.

    Raises:
        UserError: there is no such folder, no permission, or the file is another program's.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        folder = self.path.parent
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder} for the answers in {self.path.name}")
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder: give a file for answers")
        if self.path.exists() and not self.path.is_file():
            raise UserError(f"{self.path} is a device or a pipe: give a file for answers")
        if not os.access(self.path if self.path.exists() else folder, os.W_OK):
            raise UserError(f"the answers in {self.path} cannot be written: no permission")
        if self.path.exists():
            with _refusing(UserError, self.path), closing(self._connected()) as connection:
                self._is_ready(connection)

    def claiming(self) -> AbstractContextManager[Claims]:
        """Claims of one who asks what is not remembered, so that no other one does."""
        return claiming(self.path.with_name(f"{self.path.name}-asking"))

    @contextmanager
    def opened(self) -> Iterator[OpenStore]:
        """The store, for as long as some questions take; a UserError where it cannot be used."""
        with _refusing(UserError, self.path):
            connection = self._connected()
        with closing(connection):
            with _refusing(UserError, self.path):
                self._prepare(connection)
            yield OpenStore(self.path, connection)

    def _connected(self) -> sqlite3.Connection:
        # Autocommit: each statement is a transaction. A generator may move between threads.
        return sqlite3.connect(
            self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False
        )

    def _is_ready(self, connection: sqlite3.Connection) -> bool:
        """Whether the table is there; an empty file has none."""
        try:
            # In one statement: another process may be creating the table.
            application, version, tables = connection.execute(
                "SELECT (SELECT application_id FROM pragma_application_id),"
                " (SELECT user_version FROM pragma_user_version),"
                " (SELECT count(*) FROM sqlite_master)"
            ).fetchone()
        except sqlite3.OperationalError:  # it may well be one, which cannot be read now
            raise
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path} is no file of answers: {error}") from error
        if (application, version, tables) == (0, 0, 0):
            return False
        if application != _APPLICATION:
            raise UserError(f"{self.path} is a database of something else: give another path")
        if version != _VERSION:
            raise UserError(
                f"{self.path} holds answers in the format {version} of another version of "
                f"nlhf_zoo, and this one has the format {_VERSION}: give another path"
            )
        return True

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make the table, if need be, and see to it that writing is safe."""
        connection.execute("PRAGMA synchronous = FULL")
        if not self._is_ready(connection):
            connection.execute("BEGIN IMMEDIATE")
            if not self._is_ready(connection):  # nor made by another process meanwhile
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("COMMIT")
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # Others use a new file, still with a rollback journal: slower, and no less safe.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise


@dataclass(frozen=True, slots=True)
class OpenStore:
    """An `AnswerStore` that can be read and written; an OracleStoppedError where that has ended.

    A question's name has 16 bytes. The connection is to a database that has the table.
    """

    path: Path
    connection: sqlite3.Connection

    def find(self, names: Sequence[bytes]) -> dict[bytes, Remembered]:
        """The answers that are known, by the names of their questions."""
        found = {}
        for start in range(0, len(names), _KEYS):
            some = names[start : start + _KEYS]
            query = f"SELECT * FROM answers WHERE question IN ({', '.join('?' * len(some))})"
            with _refusing(OracleStoppedError, self.path):
                for name, probability, ascending in self.connection.execute(query, some):
                    found[name] = Remembered(probability, bool(ascending))
        return found

    def keep(self, name: bytes, answer: Remembered) -> Remembered:
        """Remember an answer to a question; it is on the disk when this returns.

        What is returned is remembered: another process's answer where that was quicker.
        """
        row = (name, answer.probability, answer.ascending)
        with _refusing(OracleStoppedError, self.path):
            cursor = self.connection.execute(
                "INSERT INTO answers VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row
            )
        return answer if cursor.rowcount else self.find([name])[name]


@contextmanager
def _refusing(kind: type[UserError], path: Path) -> Iterator[None]:
    """Raise what SQLite objects to as one sentence."""
    try:
        yield
    except sqlite3.Error as error:
        raise kind(f"the answers in {path} cannot be read or written: {error}") from error
