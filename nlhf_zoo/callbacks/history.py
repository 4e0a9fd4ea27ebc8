"""The metrics of every round, in one file that survives a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written
from nlhf_zoo.game.lightning_internals import is_trial
from nlhf_zoo.metrics.processes import run_folder

Array = NDArray[np.float64]


class History:
    """Rows of figures, one a round, appended to ``history.bin`` while a run goes on.

    A row is the round, the queries for each prompt, and each metric for each of C prompts, all
    float64. ``history.json`` beside it names the columns. What was written after the last
    checkpoint is cut off when a run resumes, so that the file is what one uninterrupted run would
    have written.

    Args:
        folder: where the files lie; made if it is missing.
        metrics: names of the metrics.
        num_prompts: C.
    """

    def __init__(self, folder: Path, metrics: list[str], num_prompts: int) -> None:
        self.path = folder / "history.bin"
        self.width = 2 + len(metrics) * num_prompts
        folder.mkdir(parents=True, exist_ok=True)
        header = folder / "history.json"
        with written(header) as beside:
            beside.write_text(json.dumps({"metrics": metrics, "num_prompts": num_prompts}) + "\n")
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")

    def cut(self, rows: int) -> None:
        """Keep the first rows only.

        Raises:
            UserError: there are fewer rows than the checkpoint has seen.
        """
        size = rows * self.width * 8
        self._file.seek(0, 2)
        if self._file.tell() < size:
            raise UserError(
                f"{self.path} holds fewer rounds than the checkpoint: it is not of this run"
            )
        self._file.truncate(size)
        self._file.seek(size)

    def append(self, rounds: Array, queries: Array, metrics: dict[str, Array]) -> None:
        """Add R rows; metrics are [R, C] each, in the order of the header."""
        self._file.write(
            np.column_stack([rounds, queries, *metrics.values()]).astype(np.float64).tobytes()
        )

    def flush(self) -> None:
        """Hand everything to the operating system: a kill of this process then loses nothing."""
        self._file.flush()

    def close(self) -> None:
        """Close the file; a kill before it would lose what the process still holds."""
        self._file.close()


def folder_of_files(trainer: L.Trainer) -> Path | None:
    """Where a run leaves its files: its logger's folder; all processes call this.

    Without a logger that is `default_root_dir`, where it is given, and nowhere else (the working
    folder as ".": by its absolute name Lightning has it where nobody gave any). None in the other
    processes than the first, and in a trial, which leaves nothing.
    """
    folder = run_folder(trainer)  # asks all processes
    is_given = bool(trainer.loggers) or trainer.default_root_dir != os.getcwd()
    writes = trainer.is_global_zero and is_given and not is_trial(trainer)
    return Path(folder) if folder is not None and writes else None


def read_history(folder: str | Path) -> dict[str, Any]:
    """Read the history of a run.

    Args:
        folder: where ``nlhf fit`` logged, with history.json and history.bin.

    Returns:
        ``round`` and ``queries`` [R], and each metric [R, C]. With an adaptive step ``queries`` are
        those of the game that asked most, and ``queries_of_games`` [R, C] each game's own.

    Raises:
        UserError: the folder holds no history.
    """
    folder = Path(folder)
    if not (folder / "history.json").is_file() or not (folder / "history.bin").is_file():
        raise UserError(
            f"{folder} holds no history.json and history.bin: give a folder of `nlhf fit`"
        )
    header = json.loads((folder / "history.json").read_text())
    names, num_prompts = header["metrics"], header["num_prompts"]
    values = np.fromfile(folder / "history.bin", dtype=np.float64)
    width = 2 + len(names) * num_prompts
    rows = values[: len(values) // width * width].reshape(-1, width)
    metrics = rows[:, 2:].reshape(len(rows), len(names), num_prompts).swapaxes(0, 1)
    return {"round": rows[:, 0], "queries": rows[:, 1], **dict(zip(names, metrics, strict=True))}
