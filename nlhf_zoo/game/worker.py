"""A thread that does one task after the other beside the one that trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Worker(Generic[_T]):
    """Does tasks in the order in which they are given; after one that fails, none is begun.

    An interrupted program does not wait for it, as it does for a thread of concurrent.futures.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Callable[[], _T], Future[_T]] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def begin(self, task: Callable[[], _T]) -> Future[_T]:
        """Have a task done; who waits for the result gets its error, or that of one before it."""
        done: Future[_T] = Future()
        self._tasks.put((task, done))
        return done

    def end(self, wait: bool = True) -> None:
        """Take no more tasks; and wait for those that were given."""
        self._tasks.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        failed: BaseException | None = None
        for task, done in iter(self._tasks.get, None):
            try:
                if failed is None:
                    done.set_result(task())
            except BaseException as error:
                failed = error
            if failed is not None:
                done.set_exception(failed)
