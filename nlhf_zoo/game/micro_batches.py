"""Playing and judging a batch part by part, overlapping where that is wanted, and by the clock."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.game.worker import Worker
from nlhf_zoo.records import Prompts, Responses
from nlhf_zoo.signals import StoppedBySignal

PHASES = ("generate", "judge", "score", "update")
# Scored responses to some prompts, and those of each opponent; in self-play one object twice.
Played = tuple[Responses, Sequence[Responses]]
Play = Callable[[Prompts], Played]
Judging = Callable[[Prompts, Responses, Sequence[Responses]], Payoffs]


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """Splits a batch of prompts, so that judging may overlap with the generation of the next part.

    Responses are drawn in the order of the parts, and judged in that order by one thread at a time:
    whether the two overlap changes neither what is drawn nor what an oracle is asked, nor when.

    Raises:
        UserError: there is nothing to overlap.
    """

    parts: int = 1  # that a batch is split into, at most
    overlap: bool = False  # judge a part while the next one is played

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise UserError(f"model.micro_batches must be at least 1, but it is {self.parts}")
        if self.overlap and self.parts == 1:
            raise UserError(
                "model.overlap_judging needs a next part to draw meanwhile: set "
                "model.micro_batches to 2 or more"
            )

    def number(self, num_prompts: int) -> int:
        """Parts that so many prompts are split into."""
        return min(self.parts, num_prompts)

    def __call__(
        self, prompts: Prompts, play: Play, judge: Judging, timer: StepTimer
    ) -> tuple[Responses, Sequence[Responses], Payoffs]:
        """Scored responses to all prompts, those of each opponent, and the payoffs.

        Of judging that overlaps, the timer counts what is waited for.
        """
        parts = prompts.split(self.parts)
        played: list[Played] = []
        if not self.overlap:
            payoffs = []
            for part in parts:
                with timer.phase("generate"):
                    played.append(play(part))
                with timer.phase("judge"):
                    payoffs.append(judge(part, *played[-1]))
            return *_joined(played), Payoffs.joined(payoffs)
        worker, judged = Worker[Payoffs]("judge"), []
        try:
            for part in parts:
                with timer.phase("generate"):
                    played.append(play(part))
                judged.append(worker.begin(partial(judge, part, *played[-1])))
            with timer.phase("judge"):
                payoffs = [one.result() for one in judged]
        finally:  # also where playing has failed
            worker.end(wait=not isinstance(sys.exception(), KeyboardInterrupt | StoppedBySignal))
        return *_joined(played), Payoffs.joined(payoffs)


def _joined(played: Sequence[Played]) -> Played:
    """The parts of a batch as one; what was one object stays one."""
    if len(played) == 1:
        return played[0]
    ours = [responses for responses, _ in played]
    scored = Responses.joined(ours)
    opponents = []
    for theirs in zip(*(opponents for _, opponents in played), strict=True):
        is_self_play = all(one is other for one, other in zip(ours, theirs, strict=True))
        opponents.append(scored if is_self_play else Responses.joined(theirs))
    return scored, opponents


def nobody_listens(phase: str | None) -> None:
    """What a timer calls that nobody else listens to."""


@dataclass(slots=True)
class StepTimer:
    """Seconds spent in each phase, since the last ``take`` and in all.

    A GPU is waited for at each border.

    ``update`` is what Lightning does between the loss and the end of the optimiser step: backward,
    gradients of other processes, clipping, the step itself. ``on_phase`` is called with the name of
    each of the others as it begins, and with None at its end. ``failed_in`` is the one in which an
    error was raised first.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    total: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    on_phase: Callable[[str | None], None] = nobody_listens
    failed_in: str | None = None
    _update_began: float | None = None
    _phase: str | None = None  # the present one
    _inside: float = 0.0  # seconds of phases within the present one

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what runs inside as this phase, but for phases within it."""
        outer, self._phase = self._phase, name
        self.on_phase(name)
        before, self._inside = self._inside, 0.0
        began = _now()
        try:
            with self.failing_in(name):
                yield
        finally:
            spent = self._add(name, began + self._inside) + self._inside
            self._inside = before + spent
            self._phase = outer
        self.on_phase(outer)

    @contextmanager
    def failing_in(self, name: str) -> Iterator[None]:
        """Note that an error was raised inside this phase, whose time is not counted."""
        try:
            yield
        except BaseException:
            self.failed_in = self.failed_in or name
            raise

    def begin_update(self) -> None:
        """The loss is computed: what follows counts as `update`."""
        self._update_began = _now()

    def end_update(self) -> None:
        """The optimiser has stepped: `update` ends."""
        if self._update_began is not None:
            self._add("update", self._update_began)
            self._update_began = None

    def _add(self, phase: str, began: float) -> float:
        spent = _now() - began
        self.seconds[phase] += spent
        self.total[phase] += spent
        return spent

    def take(self) -> dict[str, float]:
        """The seconds so far, and begin again."""
        seconds = self.seconds
        self.seconds = dict.fromkeys(PHASES, 0.0)
        return seconds


def _now() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
