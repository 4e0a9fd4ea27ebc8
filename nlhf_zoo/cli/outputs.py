"""Files that a command writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nlhf_zoo.errors import UserError


def refuse_output(option: str, path: Path | None, inputs: Sequence[Path | None]) -> None:
    """Refuse a file that cannot be written, or would overwrite one that is read."""
    if path is None:
        return
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"{option} {path}: the folder {folder} does not exist, create it first")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: give the name of a file in it")
    if path.exists() and not path.is_file():
        raise UserError(f"{option} {path} is a device or a pipe: give the name of a file")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path}: the folder {folder} cannot be written to")
    if any(source is not None and path.resolve() == source.resolve() for source in inputs):
        raise UserError(f"{option} {path} would overwrite an input file: give another name")
