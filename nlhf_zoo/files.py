"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its place when it is whole; never where writing it fails.

    Args:
        path: the file, in a folder that exists; of a link, what it leads to.

    Yields:
        the path to write to.

    Raises:
        OSError: the disk is full, or the place cannot be written to; it names the file. A device, a
            pipe or a folder stands in its place, which stays.
    """
    if path.exists() and not path.is_file():  # root may well replace /dev/null
        raise FileExistsError(errno.EEXIST, "is no file that may be replaced", str(path))
    path = Path(os.path.realpath(path))
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming(path):
        try:
            yield beside
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let an error inside name a file or a folder: of a full disk the system does not say which.

    Raises:
        OSError: there was one.
    """
    try:
        yield
    except OSError as error:
        of_another = error.filename is not None and not str(error.filename).endswith(".part")
        if error.errno is None or of_another:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
