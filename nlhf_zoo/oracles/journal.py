"""What oracles are asked, on the disk before they are asked: a kill loses no count."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import final

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.files import written
from nlhf_zoo.oracles.ledger import FIELDS, Gate, Ledger

_NAME = "asked-{}.jsonl"  # of the file of a process, by its number


@final
class Journal:
    """The counts of a process, a line of JSON for each ledger, in a file beside its checkpoints.

    It is the last gate of each ledger: what is allowed is written before it is asked.

    Each line has its length for good and is written over in one call of the operating system, which
    a kill does not cut in half; a crash of the machine may lose the last seconds. What all
    processes have asked is the sum of their files.

    Args:
        folder: of the checkpoints; made if it is missing.
        process: number of this process.
        ledgers: by their names within an oracle.
        begins: whether the file begins with what the ledgers have counted; else with nothing.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(
        self, folder: Path, process: int, ledgers: Mapping[str, Ledger], begins: bool
    ) -> None:
        self.path = folder / _NAME.format(process)
        nothing = dict.fromkeys(FIELDS, 0)
        self._counts = {
            name: ledger.counts() if begins else nothing.copy() for name, ledger in ledgers.items()
        }
        lines = [self._line(name) for name in ledgers]
        ends = [0, *accumulate(map(len, lines))]
        self._places = dict(zip(ledgers, ends, strict=False))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with written(self.path) as beside:
                beside.write_bytes(b"".join(lines))
            self._file = os.open(self.path, os.O_WRONLY)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error
        weakref.finalize(self, os.close, self._file)
        self._gates: list[tuple[Ledger, Gate]] = [
            (ledger, partial(self._write, name)) for name, ledger in ledgers.items()
        ]
        for ledger, gate in self._gates:
            ledger.gates.append(gate)

    def end(self) -> None:
        """Write no more."""
        for ledger, gate in self._gates:
            ledger.gates.remove(gate)
        self._gates.clear()

    def _write(self, name: str, counts: Mapping[str, int]) -> None:
        for field, count in counts.items():
            self._counts[name][field] += count
        try:
            os.pwrite(self._file, self._line(name), self._places[name])
        except OSError as error:
            raise OracleStoppedError(
                f"{self.path}, which counts what the oracle is asked, cannot be written: "
                f"{error.strerror}"
            ) from error

    def _line(self, name: str) -> bytes:
        fields = ", ".join(f'"{field}": {count:19d}' for field, count in self._counts[name].items())
        return f'{{"ledger": {json.dumps(name)}, {fields}}}\n'.encode()


def journalled(folder: Path) -> dict[str, dict[str, int]]:
    """What all processes have asked that have written to a folder, by ledger; empty without files.

    Raises:
        UserError: a file is no journal.
    """
    total: dict[str, dict[str, int]] = {}
    for path in sorted(folder.glob(_NAME.format("*"))):
        try:
            lines = [json.loads(line) for line in path.read_bytes().splitlines()]
            for line in lines:
                of_all = total.setdefault(line.pop("ledger"), dict.fromkeys(FIELDS, 0))
                for field in FIELDS:
                    of_all[field] += int(line.get(field, 0))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}, which counts what the oracle was asked, cannot be read: remove it to go "
                "on with the counts of the checkpoint alone"
            ) from error
    return total


def uncounted(ledgers: Mapping[str, Ledger], folder: Path) -> list[int]:
    """How much more a folder's files count than each field of each ledger, in order."""
    asked = journalled(folder)
    return [
        max(0, asked.get(name, {}).get(field, 0) - ledger[field])
        for name, ledger in ledgers.items()
        for field in FIELDS
    ]


def forget_others(folder: Path, num_processes: int) -> None:
    """Remove the files of processes that there are no more."""
    ours = {_NAME.format(process) for process in range(num_processes)}
    for path in folder.glob(_NAME.format("*")):
        if path.name not in ours:
            path.unlink()
