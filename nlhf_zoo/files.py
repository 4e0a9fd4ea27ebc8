"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its place when it is whole; never where writing it fails.

    Args:
        path: the file, in a folder that exists.

    Yields:
        the path to write to.

    Raises:
        OSError: the disk is full, or the place cannot be written to.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
