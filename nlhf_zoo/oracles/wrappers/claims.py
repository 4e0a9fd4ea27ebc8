"""Who asks which question just now, over all processes and threads that share a file of answers."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# Locks that belong to an open file, and not to a process: two threads exclude each other, and
# closing another file takes none away. Linux has them.
_SET_LOCK = getattr(fcntl, "F_OFD_SETLK", None) if sys.platform == "linux" else None
_LOCK = "hhqqi4x"  # struct flock: type, whence, start, length, process
_MOST = 4096  # claims of one holder: the system looks through all of them for each new one


class Claims:
    """The questions that this holder asks; made by `claiming`.

    A claim is a lock on one byte of a file, at the place that the question's name gives. The system
    drops it with the process that holds it, however that ends. Where there are no such locks every
    claim is granted, and nobody waits for anybody.
    """

    def __init__(self, file: int | None) -> None:
        self._file = file
        self._held: set[bytes] = set()

    def take(self, names: Sequence[bytes]) -> set[bytes]:
        """Claim questions, by their names of 16 bytes; those that nobody else has claimed."""
        return {name for name in names if self._is_taken(name)}

    def give_back(self, name: bytes) -> None:
        """Let others ask."""
        if self._file is not None and name in self._held:
            self._held.discard(name)
            self._lock(self._file, name, fcntl.F_UNLCK)

    def _is_taken(self, name: bytes) -> bool:
        if self._file is None or name in self._held or len(self._held) >= _MOST:
            return True
        if not self._lock(self._file, name, fcntl.F_WRLCK):
            return False
        self._held.add(name)
        return True

    @staticmethod
    def _lock(file: int, name: bytes, kind: int) -> bool:
        """Set a lock or take it off; False where another holder has it."""
        assert _SET_LOCK is not None
        place = int.from_bytes(name[:7], "big")
        try:
            fcntl.fcntl(file, _SET_LOCK, struct.pack(_LOCK, kind, os.SEEK_SET, place, 1, 0))
        except OSError as error:  # another has it; or there are none to be had, and nobody waits
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True


@contextmanager
def claiming(path: Path) -> Iterator[Claims]:
    """Claims of one holder; all are given back in the end.

    Args:
        path: of a file that belongs to these claims alone; made if it is missing.
    """
    file = None
    if _SET_LOCK is not None:
        with suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield Claims(file)
    finally:
        if file is not None:
            os.close(file)
