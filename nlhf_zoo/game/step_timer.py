"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

PHASES = ("generate", "judge", "score", "update")


@dataclass(slots=True)
class StepTimer:
    """Seconds spent in each phase, since the last ``take`` and in all.

    A GPU is waited for at each border.

    ``update`` is what Lightning does between the loss and the end of the optimiser step: backward,
    gradients of other processes, clipping, the step itself.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    total: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    _update_began: float | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what runs inside as this phase."""
        began = _now()
        try:
            yield
        finally:
            self._add(name, began)

    def begin_update(self) -> None:
        """The loss is computed: what follows counts as `update`."""
        self._update_began = _now()

    def end_update(self) -> None:
        """The optimiser has stepped: `update` ends."""
        if self._update_began is not None:
            self._add("update", self._update_began)
            self._update_began = None

    def _add(self, phase: str, began: float) -> None:
        spent = _now() - began
        self.seconds[phase] += spent
        self.total[phase] += spent

    def take(self) -> dict[str, float]:
        """The seconds so far, and begin again."""
        seconds = self.seconds
        self.seconds = dict.fromkeys(PHASES, 0.0)
        return seconds


def _now() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
