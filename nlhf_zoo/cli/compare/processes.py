"""Runs one by one, or several at a time in processes of their own."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from nlhf_zoo.cli.compare.configuration import Configuration
from nlhf_zoo.cli.compare.contenders import Contender
from nlhf_zoo.cli.compare.runs import Run, play
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.errors import UserError


@dataclass(frozen=True, slots=True)
class Task:
    """A run that is to be played."""

    contender: Contender
    seed: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.contender.where}, {self.contender.label}, seed {self.seed}"


class Progress(Protocol):
    """Who is told how the runs get on."""

    def begin(self, task: Task) -> None:
        """A run begins."""

    def advance(self, task: Task, amount: int) -> None:
        """So many queries (rounds, if the budget is in rounds) more were played of it."""

    def end(self, task: Task) -> None:
        """It has ended, perhaps before its budget."""


class Team:
    """Plays runs; what comes of them does not depend on the number of processes.

    Args:
        configuration: of the comparison.
        progress: is told how the runs get on.
    """

    def __init__(self, configuration: Configuration, progress: Progress) -> None:
        self.configuration = configuration
        self.progress = progress
        self._workers: list[_Worker] = []

    def play(self, tasks: Sequence[Task]) -> Iterator[Run]:
        """Play runs.

        Args:
            tasks: which.

        Yields:
            what came of them, in this order.

        Raises:
            UserError: one cannot be played, or its process died.
        """
        here = self.configuration.processes == 1
        return self._one_by_one(tasks) if here else self._side_by_side(tasks)

    def close(self) -> None:
        """End the processes, whatever they do."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _one_by_one(self, tasks: Sequence[Task]) -> Iterator[Run]:
        for task in tasks:
            self.progress.begin(task)
            report = partial(self.progress.advance, task)
            try:
                run = play(task.contender, task.seed, self.configuration, report)
            except UserError as error:
                raise UserError(f"{task.name}: {error}") from error
            except Exception as error:
                error.add_note(f"in the run {task.name}")
                raise
            self.progress.end(task)
            yield run

    def _side_by_side(self, tasks: Sequence[Task]) -> Iterator[Run]:
        todo = list(enumerate(tasks))[::-1]
        early: dict[int, Run] = {}  # runs that ended before one that comes first
        wanted = min(self.configuration.processes, len(tasks))
        while len(self._workers) < wanted:
            self._workers.append(_Worker(self.configuration, self.progress))
        for worker in self._workers[:wanted]:
            worker.give(*todo.pop())
        for number in range(len(tasks)):
            while number not in early:
                for worker in _ready(self._workers):
                    if (run := worker.take()) is not None:
                        early[worker.number] = run
                        if todo:
                            worker.give(*todo.pop())
            yield early.pop(number)


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Those that have something to say, when there is one."""
    busy = [worker for worker in workers if worker.task is not None]
    spoke = wait([worker.connection for worker in busy])
    return [worker for worker in busy if worker.connection in spoke]


class _Worker:
    """A process that plays one run after another."""

    def __init__(self, configuration: Configuration, progress: Progress) -> None:
        self.progress = progress
        # A plain fork would inherit threads' locks, and a GPU's state; these processes are forks of
        # one that has imported everything and done nothing.
        forks = "forkserver" in get_all_start_methods()
        context = get_context("forkserver") if forks else get_context("spawn")
        context.set_forkserver_preload([__name__])
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, configuration), daemon=True)
        self.process.start()
        other.close()  # so that a process that dies ends the connection
        self.number = -1
        self.task: Task | None = None

    def give(self, number: int, task: Task) -> None:
        """Let it play a run."""
        self.number, self.task = number, task
        self.progress.begin(task)
        self._ask(self.connection.send, task)

    def take(self) -> Run | None:
        """What it has to say: the run, or None as long as that goes on.

        Raises:
            UserError: the run cannot be played, or the process died.
            RuntimeError: the run failed.
        """
        task = self.task
        assert task is not None
        answer = self._ask(self.connection.recv)
        if isinstance(answer, int):
            self.progress.advance(task, answer)
            return None
        if isinstance(answer, UserError):
            raise UserError(f"{task.name}: {answer}") from answer
        if isinstance(answer, str):
            raise RuntimeError(f"the run {task.name} failed:\n{answer}")
        assert isinstance(answer, Run)
        self.task = None
        self.progress.end(task)
        return answer

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.terminate()
        self.process.join()
        self.connection.close()

    def _ask(self, what: Any, *args: Any) -> Any:
        try:
            return what(*args)
        except (EOFError, OSError) as error:
            assert self.task is not None
            self.process.join()
            raise UserError(
                f"{self.task.name}: its process died (exit code {self.process.exitcode}): lower "
                "processes if memory ran out, or set it to 1 to see why"
            ) from error


def _serve(connection: Connection, configuration: Configuration) -> None:
    """What a worker's process does: receive tasks, and send their progress and what came of them.

    A failure is sent as its traceback: an exception may not survive the way.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    with quiet():
        while True:
            try:
                task = connection.recv()
            except EOFError:  # the parent has gone
                return
            answer: Run | UserError | str
            try:
                answer = play(task.contender, task.seed, configuration, connection.send)
            except UserError as error:
                answer = UserError(str(error))
            except BrokenPipeError:  # the parent has gone
                return
            except Exception:
                answer = traceback.format_exc()
            connection.send(answer)
