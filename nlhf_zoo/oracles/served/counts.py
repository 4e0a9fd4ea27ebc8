"""What a served oracle is asked, in a folder of its server's: it survives the server's end."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.journal import Journal, journalled
from nlhf_zoo.oracles.ledger import ledgers
from nlhf_zoo.oracles.served.description import fingerprint_of

_ORACLE, _LOCK = "oracle.json", ".lock"


@contextmanager
def counted_in(folder: Path, oracle: PreferenceOracle) -> Iterator[Path | None]:
    """Count in a folder, before each question is put; go on from what was counted there before.

    So a budget holds over all servers that were started on the folder, one after the other.

    Args:
        folder: of this oracle alone; made if it is missing.
        oracle: who is served.

    Yields:
        the file; None where the oracle keeps no counts.

    Raises:
        UserError: the folder cannot be written to, is of another oracle, or another server counts
            there now.
    """
    own = ledgers(oracle)
    if not own:
        yield None
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_WRONLY | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"--folder {folder} cannot be written to: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"--folder {folder} holds the counts of a server that is running: give another"
            ) from None
        _refuse_other(folder, oracle)
        counts = journalled(folder)
        for name, ledger in own.items():
            ledger.restore(counts.get(name, {}))
        journal = Journal(folder, 0, own, begins=True)
        try:
            yield journal.path
        finally:
            journal.end()
    finally:
        os.close(lock)


def _refuse_other(folder: Path, oracle: PreferenceOracle) -> None:
    """Refuse a folder with counts of another oracle; else note whose they are."""
    path = folder / _ORACLE
    now = {"oracle": type(oracle).__name__, "fingerprint": fingerprint_of(oracle)}
    try:
        was = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
        with written(path) as beside:
            beside.write_text(json.dumps(now if was == now else was), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read or written: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} was not written by `nlhf serve-oracle`: remove it") from error
    if was != now:
        raise UserError(
            f"--folder {folder} counts what another oracle was asked: give another folder"
        )
