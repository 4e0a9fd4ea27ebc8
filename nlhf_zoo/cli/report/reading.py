"""What lies in the folder of a run, read for a page; every part but the configuration may lack."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.callbacks.game_figures import FOLDER
from nlhf_zoo.callbacks.history import read_history
from nlhf_zoo.callbacks.response_table import NAME
from nlhf_zoo.cli.files import read_config
from nlhf_zoo.cli.report.hiding import shown
from nlhf_zoo.cli.resuming import VERSIONS
from nlhf_zoo.errors import UserError

Array = NDArray[np.float64]
Curve = tuple[Array, Array]  # steps and values

# Metrics of a history that stand in for a thinned curve, by its tag.
_OF_HISTORY = ("exploitability", "kl_to_nash", "kl_to_reference")


@dataclass(frozen=True)
class Run:
    """A run of ``nlhf fit``."""

    name: str  # by which it differs from the others of a page
    folder: Path
    config: Mapping[str, Any]  # without secrets
    curves: Mapping[str, Curve] = field(default_factory=dict)  # by tag
    samples: Sequence[Mapping[str, Any]] = ()
    versions: Sequence[Mapping[str, str]] = ()

    @property
    def parts(self) -> Mapping[str, Any]:
        """Its model's arguments."""
        model = self.config.get("model") or {}
        return dict(model.get("init_args", model)) if isinstance(model, Mapping) else {}

    def kind(self, part: str) -> str:
        """The name of the class of a part, without its module."""
        block = self.parts.get(part)
        path = block.get("class_path", "") if isinstance(block, Mapping) else block
        return str(path or "").rpartition(".")[2]

    @property
    def pictures(self) -> list[Path]:
        """Figures that the run has drawn."""
        return sorted((self.folder / FOLDER).glob("*.png"))

    def last(self, *tags: str) -> float | None:
        """The last value of the first of these tags that there is."""
        for tag in tags:
            if tag in self.curves and len(self.curves[tag][1]):
                return float(self.curves[tag][1][-1])
        return None


def names_of(folders: Sequence[Path]) -> list[str]:
    """What tells runs apart: their paths, without what all begin with."""
    whole = [folder.resolve() for folder in folders]
    if len(whole) == 1:
        return ["/".join(whole[0].parts[-2:])]
    shared = Path(os.path.commonpath(whole))
    return [str(path.relative_to(shared)) if path != shared else path.name for path in whole]


def read_run(folder: Path, name: str) -> Run:
    """Read a run.

    Raises:
        UserError: a file of it is damaged.
    """
    config = read_config(str(folder / "config.yaml"), option="")
    curves = read_events(folder)
    if (folder / "history.json").is_file():
        curves |= _exact_curves(folder)
    return Run(
        name,
        folder,
        shown(config),
        curves,
        last_round(read_lines(folder / NAME)),
        [entry for entry in read_json(folder / VERSIONS, []) if isinstance(entry, Mapping)],
    )


def _exact_curves(folder: Path) -> dict[str, Curve]:
    """Means over prompts of what a history has of every round, by the tags of thinned curves."""
    history = read_history(folder)
    return {
        tag: (history[axis], history[name].mean(1))
        for name in _OF_HISTORY
        if name in history
        for axis, tag in (("queries", f"by_query/{name}"), ("round", f"game/{name}"))
    }


def read_events(folder: Path) -> dict[str, Curve]:
    """The scalars that TensorBoard's files in a folder hold, by tag.

    A run that was resumed may have logged a step twice: the later value is kept.
    """
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        rows = {each.step: each.value for each in events.Scalars(tag)}
        steps = sorted(rows)
        values = np.array([rows[step] for step in steps], dtype=np.float64)
        curves[tag] = np.array(steps, dtype=np.float64), values
    return curves


def read_json(path: Path, without: Any) -> Any:
    """What a file of JSON holds, or `without` where there is none.

    Raises:
        UserError: it is no JSON.
    """
    if not path.is_file():
        return without
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON, or damaged: move it away to leave it out") from error


def read_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The records of a file of JSON lines; none where there is no file.

    A last line that is cut short, as a kill leaves it, is left out.

    Raises:
        UserError: another line is no record.
    """
    if not path.is_file():
        return
    # Not `splitlines`: a text may hold other ends of lines, such as U+2028, which JSON leaves.
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, Mapping):
            yield record
        elif number < len(lines):
            raise UserError(
                f"{path}, line {number} is no record: move the file away to leave it out"
            )


def last_round(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of the last round, which stand behind all others; all, where rounds are not told."""
    kept: list[Mapping[str, Any]] = []
    for record in records:
        if kept and record.get("round") != kept[-1].get("round"):
            kept = []
        kept.append(record)
    return kept


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of figures."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return rows_of(file)


def rows_of(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of a table; a column that holds nothing but numbers, or nothing, holds numbers."""
    rows = [{str(key): value for key, value in row.items()} for row in csv.DictReader(lines)]
    for key in rows[0] if rows else ():
        try:
            numbers = [float(row[key]) if row[key] else None for row in rows]
        except (TypeError, ValueError, KeyError):  # a name, or a row that is longer than the head
            continue
        for row, number in zip(rows, numbers, strict=True):
            row[key] = number
    return rows
