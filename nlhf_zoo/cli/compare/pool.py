"""Runs one by one, or several at a time in processes of their own.

A ``ProcessPoolExecutor`` would not do: it does not say which run's process died or how, it cannot
end processes that are at work, and where this one is killed it leaves them behind. A worker here
has a pipe, by which it says how its run gets on, and ends when nobody is at the other end.
"""

from __future__ import annotations

import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection, wait

import torch
from tqdm import tqdm

from nlhf_zoo.cli.compare.runs import RunResult, Task
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.errors import UserError


class WorkerPool:
    """Plays runs; what comes of them does not depend on the number of processes.

    Args:
        processes: runs that go on at a time; a single one is played in this process.
        bar: named by the run that began last, and moved as the runs get on.
    """

    def __init__(self, processes: int, bar: tqdm) -> None:
        self._processes = processes
        self._bar = bar
        self._workers: list[_Worker] = []

    def play(self, tasks: Sequence[Task]) -> Iterator[RunResult]:
        """Play runs.

        Args:
            tasks: which.

        Yields:
            what came of them, in this order.

        Raises:
            UserError: one cannot be played, or its process died.
        """
        return self._one_by_one(tasks) if self._processes == 1 else self._side_by_side(tasks)

    def close(self) -> None:
        """End the processes, whatever they do."""
        for worker in self._workers:
            worker.end()

    def _one_by_one(self, tasks: Sequence[Task]) -> Iterator[RunResult]:
        for task in tasks:
            self._bar.set_description(task.name, False)
            try:
                result = task.play(self._bar.update)
            except UserError as error:
                raise UserError(f"{task.name}: {error}") from error
            except Exception as error:
                error.add_note(f"in the run {task.name}")
                raise
            yield result

    def _side_by_side(self, tasks: Sequence[Task]) -> Iterator[RunResult]:
        waiting = deque(tasks)
        ended: dict[str, RunResult] = {}  # some before one that comes first
        while len(self._workers) < min(self._processes, len(tasks)):
            self._workers.append(_Worker())
        for task in tasks:
            while task.name not in ended:
                for worker in self._workers:
                    if waiting and not worker.run:
                        self._bar.set_description(waiting[0].name, False)
                        worker.begin(waiting.popleft())
                busy = [worker for worker in self._workers if worker.run]
                ready = wait([worker.connection for worker in busy])
                for worker in [worker for worker in busy if worker.connection in ready]:
                    answer = worker.receive()
                    if isinstance(answer, int):
                        self._bar.update(answer)
                    else:
                        ended[answer.task.name] = answer
            yield ended.pop(task.name)


class _Worker:
    """A process that plays one run after another."""

    def __init__(self) -> None:
        # A plain fork would inherit threads' locks, and a GPU's state; these processes are forks of
        # one that has imported everything and done nothing.
        forks = "forkserver" in get_all_start_methods()
        context = get_context("forkserver") if forks else get_context("spawn")
        context.set_forkserver_preload([__name__])
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()  # so that a process that dies ends the connection
        self.run = ""  # the name of the one that it plays

    def begin(self, task: Task) -> None:
        """Let it play a run."""
        self.run = task.name
        with suppress(OSError):  # `receive` will find that it died
            self.connection.send(task)

    def receive(self) -> int | RunResult:
        """The next advance of its run, or what came of it.

        Raises:
            UserError: the run cannot be played, or the process died.
            RuntimeError: the run failed.
        """
        try:
            answer: int | RunResult | Exception = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            raise UserError(
                f"{self.run}: its process died (exit code {self.process.exitcode}): lower "
                "processes if memory ran out, or set it to 1 to see why"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, RunResult):
            self.run = ""
        return answer

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.terminate()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection) -> None:
    """What a worker's process does: receive tasks, and send their advances and what came of them.

    A failure is sent as its traceback: an exception may not survive the way.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    with quiet(), suppress(EOFError, OSError):  # the parent has gone
        while True:
            task = connection.recv()
            answer: RunResult | Exception
            try:
                answer = task.play(connection.send)
            except UserError as error:
                answer = UserError(f"{task.name}: {error}")
            except Exception:
                answer = RuntimeError(f"the run {task.name} failed:\n{traceback.format_exc()}")
            connection.send(answer)
