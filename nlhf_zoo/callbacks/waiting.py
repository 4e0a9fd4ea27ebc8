"""Where the processes of a run stand, and which of them keeps the others waiting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

UPDATE = "update, in backward"  # with the exchange of gradients
STEP = "update, in the optimiser's step"
CHECKPOINT = "writing a checkpoint"
ENDED = "the end"
_TOGETHER = (UPDATE, CHECKPOINT)  # in the midst of which processes wait for each other


class Place(NamedTuple):
    """Where a process stands; all of a run go through the same places, in the same order."""

    batch: int
    part: int  # of a batch
    phase: str
    code: str = ""  # the line of code
    exchanges: int = 0  # between all processes that it has begun
    beat: int = 0  # how often it has said so

    @property
    def order(self) -> tuple[int, int, int]:
        """What grows on the way."""
        return self.batch, self.part, self.exchanges

    def __str__(self) -> str:
        line = f", {self.code}" if self.code else ""
        return f"{self.phase} (training step {self.batch}{line})"


@dataclass
class Waiting:
    """Who is behind the others, and for how long it has not moved meanwhile; and who is silent.

    Time is added up, and not read from a clock: a run that is stopped and continued as a whole, or
    a machine that slept, hangs nowhere.
    """

    seconds: float  # that a process may be waited for
    silence: float = float("inf")  # seconds for which one may give no sign
    places: dict[int, Place] = field(default_factory=dict)
    _still: dict[int, float] = field(default_factory=dict)
    _silent: dict[int, float] = field(default_factory=dict)

    def see(self, places: dict[int, Place], passed: float) -> None:
        """Note where processes stand, so many seconds after the last time."""
        before, self.places = self.places, self.places | places
        for process, place in places.items():
            is_silent = process in before and before[process].beat == place.beat
            self._silent[process] = self._silent.get(process, 0.0) + passed if is_silent else 0.0
        was_behind, self._still = self._still, {}
        for process in self._behind():
            waits = process in was_behind and self.places[process].order == before[process].order
            self._still[process] = was_behind[process] + passed if waits else 0.0

    def hear_nothing_of(self, process: int, passed: float) -> None:
        """Note that so many seconds went by without a sign of a process."""
        self._silent[process] = self._silent.get(process, 0.0) + passed

    def hanging(self) -> list[int]:
        """The processes that have been waited for too long."""
        behind = self._behind()
        return behind if all(self._still[process] >= self.seconds for process in behind) else []

    def silent(self) -> list[int]:
        """The processes that have given no sign for too long, and that had not come to the end."""
        running = self._running()
        return [p for p, passed in self._silent.items() if passed >= self.silence and p in running]

    def _running(self) -> dict[int, Place]:
        return {p: place for p, place in self.places.items() if place.phase != ENDED}

    def _behind(self) -> list[int]:
        """The last of all; where none is, all that are where they wait for each other."""
        running = self._running()
        last = min((place.order for place in running.values()), default=None)
        behind = [process for process, place in running.items() if place.order == last]
        is_waited_for = len(behind) < len(running)
        together = len(behind) > 1 and running[behind[0]].phase in _TOGETHER
        return behind if is_waited_for or together else []

    def sentence(self, here: int = 0) -> str:
        """Which processes hang, or are silent, and where; as one of them, ``here``, sees it."""
        number = len(self.places)
        if silent := self.silent():
            who = " and of ".join(
                f"process {p} of {number}, last seen in {self.places[p]}" for p in silent
            )
            return (
                f"no sign for {self.silence:g} seconds of {who}: it was stopped or killed, or its "
                f"machine is not reached; process {here} is in {self.places[here]}"
            )
        hanging = self.hanging()
        place = self.places[hanging[0]]
        if len(hanging) < number:
            names = " and ".join(map(str, hanging))
            lines = ", ".join(self.places[process].code for process in hanging)
            who = f"process {names} of {number} hangs, last seen in {place._replace(code=lines)}"
            since = f"others have waited for it for {self.seconds:g} seconds"
        else:
            lines = ", ".join(f"process {p} at {self.places[p].code}" for p in hanging)
            who = f"one of {number} processes hangs in {place._replace(code='')}"
            since = f"for {self.seconds:g} seconds these have stood: {lines}"
        return (
            f"{who}: {since}; if it needs longer, give --trainer.callbacks+ HangWatch "
            "--trainer.callbacks.seconds more"
        )
