"""Lightning's launchers, under which a run ends as the first of its processes that has failed.

Two of Lightning's and torch's habits hide what that one has said: another process, which hears that
it has gone, may be reported in its place; and the first process is killed, with an exit code of its
own, by a thread that finds one of the others ended.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,
    _SubprocessScriptLauncher,
)
from typing_extensions import override

_PATIENCE = 10.0  # seconds that another process may need to say what has ended it


def end_as_the_first_to_fail(
    trainer: L.Trainer,
    end_of: Callable[[Exception], BaseException],
    code_for: Callable[[int, int], int],
) -> None:
    """Have a trainer's processes started so that the run ends as the first that fails.

    Args:
        trainer: made, and not used yet.
        end_of: what ends a process that meets an error: a SystemExit where that says no more than
            that another process has gone; it raises one where all is said.
        code_for: the exit code of the run, by the number of a process that has failed, and the exit
            code of that; it says why, where that process could not.
    """
    launcher, strategy = trainer.strategy.launcher, trainer.strategy
    if isinstance(launcher, _MultiProcessingLauncher):
        strategy._launcher = _Forks(launcher, end_of)
    elif isinstance(launcher, _SubprocessScriptLauncher):
        strategy._launcher = _Scripts(launcher, code_for)


class _Forks(_MultiProcessingLauncher):
    """A process that hears that another one has gone waits until the launcher ends it."""

    def __init__(
        self, other: _MultiProcessingLauncher, end_of: Callable[[Exception], BaseException]
    ) -> None:
        super().__init__(other._strategy, other._start_method)
        self._end_of = end_of

    @override
    def _wrapping_function(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._wrapping_function(*args, **kwargs)
        except Exception as error:
            # The launcher sends it where another process has ended; it kills after half a minute.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            end = self._end_of(error)
            if isinstance(end, SystemExit):
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which the launcher ends it
                time.sleep(_PATIENCE)
            raise end from (None if end is error else error)


class _Scripts(_SubprocessScriptLauncher):
    """The first process ends by itself where another one has failed, with the exit code of that."""

    def __init__(
        self, other: _SubprocessScriptLauncher, code_for: Callable[[int, int], int]
    ) -> None:
        super().__init__(other.cluster_environment, other.num_processes, other.num_nodes)
        self._code_for = code_for

    @override
    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        first = self.cluster_environment.node_rank() * self.num_processes + 1

        def observed(*its: Any, **own: Any) -> Any:
            for thread in threading.enumerate():
                if isinstance(thread, _ChildProcessObserver):
                    ends = partial(end_as_child, thread, first, self._code_for)
                    thread._terminate_all = ends  # type: ignore[method-assign]
            return function(*its, **own)

        return super().launch(observed, *args, **kwargs)


def end_as_child(
    observer: _ChildProcessObserver, first: int, code_for: Callable[[int, int], int]
) -> None:
    """End all processes, unless this one has ended meanwhile: its main thread may hear of it.

    Args:
        observer: Lightning's thread that has found one of them ended.
        first: the number of the first child.
        code_for: as above.
    """
    children = observer._child_processes
    failed = next(
        (number, child.returncode)
        for number, child in enumerate(children, first)
        if child.returncode
    )
    time.sleep(_PATIENCE)
    code = code_for(*failed)
    for child in children:
        child.send_signal(signal.SIGKILL)
    os._exit(code)
