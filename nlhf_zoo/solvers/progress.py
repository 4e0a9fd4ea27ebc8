"""A progress bar for whatever takes longer than two seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class SlowBar:
    """Appears on standard error after two seconds, and not at all where the work is done before.

    Args:
        total: pieces of work.
        description: what they are.
        shown: False for none at all.
    """

    def __init__(self, total: int, description: str, shown: bool = True) -> None:
        self.total, self.description, self.shown = total, description, shown
        self._begun = time.monotonic()
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> SlowBar:
        """Start the clock."""
        self._begun = time.monotonic()
        return self

    def update(self, done: float) -> None:
        """Say how many pieces of work are done, fractions included."""
        if self._bar is None and self.shown and time.monotonic() - self._begun > 2:
            from rich.console import Console  # slow to import, and rarely needed
            from rich.progress import Progress

            progress = Progress(console=Console(stderr=True), transient=True)
            self._bar = progress, progress.add_task(self.description, total=self.total)
            progress.start()
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=done)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar[0].stop()
