"""A comparison that was interrupted goes on where its runs stood; others are left alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nlhf_zoo import __version__
from nlhf_zoo.cli.compare.configuration import Configuration, require
from nlhf_zoo.cli.compare.entries import Entry
from nlhf_zoo.cli.compare.keeping import checkpoint_of, forget
from nlhf_zoo.cli.compare.runs import LOGS, RESULT
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written

_RESULTS = (
    "results.csv", "results.md", "comparison.png", "report.html", "queries_to_target.csv",
)  # fmt: skip
_WHAT = "comparison.json"  # what is compared; written before anything is played


def earlier_files(output: Path) -> list[Path]:
    """The files of an earlier comparison in the output folder."""
    results = [output / name for name in (*_RESULTS, _WHAT) if (output / name).exists()]
    return results + [
        path for name in (*LOGS, RESULT) for path in output.glob(f"*/*/seed_*/{name}")
    ]


def refuse_earlier(configuration: Configuration) -> None:
    """Refuse a folder whose comparison has ended, or is of a version that could not go on."""
    output, found = configuration.output, earlier_files(configuration.output)
    first = found[0].name if found else ""
    rule = f"output {output} holds an earlier comparison ({first}): give another folder, "
    ended = (output / _RESULTS[0]).exists() or not (output / _WHAT).exists()
    require(configuration.overwrite or not found or not ended, rule + "or --overwrite")


@dataclass(frozen=True, slots=True)
class Kept:
    """What of a comparison that was interrupted is not played again."""

    ended: int = 0  # runs that were played to their end
    begun: int = 0  # that go on in the middle

    def __str__(self) -> str:
        """What is said of it, where anything is kept."""
        ended = f"{self.ended} runs were played before and are kept" if self.ended else ""
        begun = f"{self.begun} go on where they stood" if self.begun else ""
        said = " and ".join(filter(None, (ended, begun)))
        return f"{said}: the rest follows" if said else ""


def begin(configuration: Configuration, entries: list[Entry]) -> Kept:
    """Make the output folder ready to be played into.

    Returns:
        what the same comparison, which was interrupted, has left there.

    Raises:
        UserError: another comparison was interrupted there.
    """
    output, what = configuration.output, _what(configuration, entries)
    if configuration.overwrite:
        _clear(output, earlier_files(output))
        for run in output.glob("*/*/seed_*"):
            forget(run)
            _remove_empty(run)
    if (there := _read(output)) is not None:
        differs = sorted(
            key for key in what.keys() | there.keys() if what.get(key) != there.get(key)
        )
        require(
            not differs,
            f"output {output} holds a comparison that was interrupted and had another "
            f"{', '.join(differs)}: run it as it was, give another folder, or --overwrite",
        )
        runs = [*output.glob("*/*/seed_*")]
        ended = [run for run in runs if (run / RESULT).exists()]
        begun = [run for run in runs if run not in ended and checkpoint_of(run)]
        return Kept(len(ended), len(begun))
    output.mkdir(parents=True, exist_ok=True)
    with written(output / _WHAT) as beside:
        beside.write_text(json.dumps(what, indent=1, default=str) + "\n", encoding="utf-8")
    return Kept()


def _what(configuration: Configuration, entries: list[Entry]) -> dict[str, Any]:
    """All that the figures depend on; in types of JSON."""
    target = configuration.target
    what = {
        "version": __version__,
        "budget": asdict(configuration.budget),
        "seeds": configuration.seeds,
        "sweep_seeds": configuration.sweep_seeds,
        "exploitability": configuration.exploitability,
        "target": None if target is None else asdict(target),
        "entries": [[e.where, e.label, e.beta, e.section, e.trainer, e.content] for e in entries],
    }
    plain: dict[str, Any] = json.loads(json.dumps(what, default=str))
    return plain


def _read(output: Path) -> dict[str, Any] | None:
    """What was compared in a folder; None where nothing was."""
    path = output / _WHAT
    if not path.exists():
        return None
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged, so that nothing can go on in {output}: give another folder, or "
            "--overwrite"
        ) from error
    return there if isinstance(there, dict) else {}


def _clear(output: Path, earlier: list[Path]) -> None:
    """Remove these files of the output folder, and the folders that held nothing else."""
    for path in earlier:
        path.unlink()
    for folder in {path.parent for path in earlier} - {output}:
        _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    """Remove the folder of a run, and those that it alone was in, where nothing is in them."""
    for empty in (folder, *folder.parents[:2]):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()
