"""The folders of runs, as commands are given them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nlhf_zoo.errors import UserError


def find_runs(given: Sequence[Path]) -> list[Path]:
    """The folders of runs; a checkpoint stands for its run.

    Raises:
        UserError: one is missing, is no folder of a run, or stands twice.
    """
    folders: list[Path] = []
    for path in given:
        folder = path.parent.parent if path.is_file() and path.suffix == ".ckpt" else path
        if not folder.is_dir():
            raise UserError(f"there is no run {path}: give the folder of a run of `nlhf fit`")
        if not (folder / "config.yaml").is_file():
            versions = sorted(file.parent for file in folder.glob("version_*/config.yaml"))
            advice = (
                f"give one of its runs, such as {versions[-1]}"
                if versions
                else ("give the folder that `nlhf fit` named at its end")
            )
            raise UserError(f"{folder} has no config.yaml, which every run has: {advice}")
        if folder.resolve() in [other.resolve() for other in folders]:
            raise UserError(f"the run {folder} is given twice: give each once")
        folders.append(folder)
    return folders
