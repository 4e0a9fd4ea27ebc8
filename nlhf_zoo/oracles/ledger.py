"""What oracles were really asked, and what that cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import final

from torch import nn

from nlhf_zoo.errors import OracleStoppedError

# What is counted, of one oracle and of all processes.
FIELDS = (
    "queries",  # distinct pairs of texts that it was asked about
    "swapped",  # of these, how many it was asked about again in the other order
    "cache_hits",  # pairs that a cache answered instead
    "modelled",  # pairs that a model answered instead, which was fitted to earlier answers
    "invalid",  # pairs without an answer
    "requests",  # requests to a server, those that are tried again too
    "retries",  # requests that repeat one that failed
    "prompt_tokens",  # tokens that a judge read, where it says so
    "reply_tokens",  # tokens that a judge wrote, likewise
    "microseconds",  # time spent in asking
)
# Called before something is counted, with what would be: it may raise `OracleStoppedError`.
Gate = Callable[[Mapping[str, int]], None]
# One count at a time in this process: threads may ask at once, and a budget reads many ledgers.
_COUNTING = threading.RLock()


@final
class Ledger(nn.Module):
    """Counts of one oracle; a module, so that a game finds those of all parts of its oracle.

    Counts of this process are kept apart until `settle` adds those of all processes up. They are
    in the game's checkpoint, beside its tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.settled = dict.fromkeys(FIELDS, 0)
        self.here = dict.fromkeys(FIELDS, 0)
        self.gates: list[Gate] = []

    def __getitem__(self, field: str) -> int:
        """The count so far: of all processes up to the last `settle`, of this one since."""
        return self.settled[field] + self.here[field]

    def counts(self) -> dict[str, int]:
        """All counts so far, each as `ledger[field]` gives it."""
        return {field: self[field] for field in FIELDS}

    def charge(self, **counts: int) -> None:
        """Count what is about to be asked, or what an answer has cost, by the names of ``FIELDS``.

        Call it *before* a question is put: what a budget does not allow is refused with an
        OracleStoppedError, and not counted.
        """
        _refuse_unknown(counts)
        with _COUNTING:
            for gate in self.gates:
                gate(counts)
            self._add(counts)

    def correct(self, **counts: int) -> None:
        """Count what was asked already, as whoever was asked says: it may be less than was counted.

        No budget can refuse it any more; one that is spent by it refuses the next question.
        """
        _refuse_unknown(counts)
        with _COUNTING:
            for gate in self.gates:
                with suppress(OracleStoppedError):
                    gate(counts)
            self._add(counts)

    def _add(self, counts: Mapping[str, int]) -> None:
        for field, count in counts.items():
            self.here[field] += count

    def settle(self, of_all: Mapping[str, int]) -> None:
        """Take ``of_all``, the sum of all processes' ``here``, in place of this one's counts."""
        for field in FIELDS:
            self.settled[field] += of_all[field]
            self.here[field] = 0

    def restore(self, counts: Mapping[str, int]) -> None:
        """Go on from counts that were saved; one that an older version did not know begins at 0."""
        self.settled = {field: counts.get(field, 0) for field in FIELDS}
        self.here = dict.fromkeys(FIELDS, 0)


def _refuse_unknown(counts: Mapping[str, int]) -> None:
    if unknown := counts.keys() - {*FIELDS}:
        raise KeyError(f"a ledger has no {sorted(unknown)[0]}: its fields are {FIELDS}")


def ledgers(oracle: nn.Module) -> dict[str, Ledger]:
    """The ledgers of an oracle and of its parts, by their names within it."""
    return {name: part for name, part in oracle.named_modules() if isinstance(part, Ledger)}


def spent(oracle: nn.Module) -> dict[str, int]:
    """What an oracle and its parts were asked together, by the names of ``FIELDS``."""
    return {f: sum(ledger[f] for ledger in ledgers(oracle).values()) for f in FIELDS}


def summary(counts: Mapping[str, int]) -> str:
    """Counts in words, those that are not 0.

    Example:
        >>> summary({"queries": 1200, "invalid": 3, "microseconds": 1_500_000})
        '1,200 queries, 3 invalid, 1.5 seconds'
    """
    parts = [
        f"{count:,} {field.replace('_', ' ')}"
        for field, count in counts.items()
        if count and field != "microseconds"
    ]
    return ", ".join([*parts, f"{counts['microseconds'] / 1e6:,.1f} seconds"])
