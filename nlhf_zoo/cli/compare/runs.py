"""Runs, each of an entry from one seed to the end of the budget: one by one, or side by side."""

from __future__ import annotations

import json
import math
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from tqdm import tqdm
from typing_extensions import override

from nlhf_zoo.callbacks import Budget, Dashboard, ExactMetrics, ResumeState, read_history
from nlhf_zoo.callbacks.exact_metrics import QUERIES_OF_GAMES
from nlhf_zoo.cli.compare import keeping
from nlhf_zoo.cli.compare.configuration import BudgetLimits
from nlhf_zoo.cli.compare.entries import Entry
from nlhf_zoo.cli.quiet import SILENT_TRAINER, quiet
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.files import written
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.signals import StoppedBySignal
from nlhf_zoo.solvers import exploitability

Array = NDArray[np.float64]

# The exploitability that is reported, as histories name it.
METRICS = {"regularised": "exploitability", "unregularised": "exploitability_unregularised"}


# What a run leaves in its folder beside the result, by which it is known to have ended.
HISTORY = ("history.json", "history.bin")
LOGS = (*HISTORY, "hparams.yaml", "events.out.tfevents.*")
RESULT = "result.json"
_NUMBERS = ("queries", "rounds", "seconds", "certificate")


@dataclass(frozen=True, slots=True)
class Task:
    """A run that is to be played: an entry, from one seed."""

    entry: Entry
    seed: int
    output: Path  # folder of the comparison
    budget: BudgetLimits
    exploitability: str  # which is reported, regularised or unregularised
    duality_gap: float | None  # the target, at which the run ends too

    @property
    def name(self) -> str:
        """How messages call this run."""
        return f"{self.entry.where}, {self.entry.label}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """The folder that this run logs into."""
        return self.output / self.entry.where / self.entry.label / f"seed_{self.seed}"

    def play(self, report: Callable[[int], Any]) -> RunResult:
        """Play it, and name it in what goes wrong; one that was played before is read.

        Called as it goes on, `report` is given the queries (rounds, if the budget is in rounds)
        since its last call, and at the end what is left of the budget.
        """
        if (played := RunResult.read(self)) is not None:
            keeping.forget(self.folder)
            report(self.budget.counted[0])
            return played
        try:
            result, stopped = self._play(report)
            result.write()
            keeping.forget(self.folder)
            if stopped is not None:
                raise StoppedBySignal(stopped)
            return result
        except OSError as error:  # which may not say of which file it is
            place = error.filename or self.folder
            raise UserError(f"{self.name}: {place}: {error.strerror or error}") from error
        except (UserError, MisconfigurationException) as error:
            raise UserError(f"{self.name}: {error}") from error
        except Exception as error:
            error.add_note(f"in the run {self.name}")
            raise

    def _play(self, report: Callable[[int], Any]) -> tuple[RunResult, signal.Signals | None]:
        """The result, and a signal that came when there was nothing left to stop."""
        kept = keeping.checkpoint_of(self.folder)
        if kept is None:
            keeping.forget(self.folder)
            for name in LOGS:  # of a run that was interrupted here before it kept anything
                for path in self.folder.glob(name):
                    path.unlink()
        L.seed_everything(self.seed, verbose=False)
        game = self.entry.make()
        exact, watch = ExactMetrics(), _Watch(self, report)
        budget = Budget(self.budget.rounds, self.budget.queries)
        keeper = keeping.RunCheckpoint(self.folder)
        trainer = self._trainer([exact, budget, watch, Dashboard(), ResumeState(), keeper])
        diverged = False
        try:
            trainer.fit(game, TablePrompts(), ckpt_path=kept)
        except DivergenceError:
            diverged = True  # a result like any other
        report(self.budget.counted[0] - watch.position)
        history = read_history(self.folder)
        curve = history[METRICS[self.exploitability]]
        last = {name: history[name][-1] for name in ("kl_to_nash", "span")}
        last["exploitability"] = curve[-1]
        # A run that has left the numbers is infinitely far off, in all its games.
        figures = {k: np.where(np.isnan(v) | diverged, np.inf, v) for k, v in last.items()}
        if self.duality_gap is not None:
            reached = 2 * curve < self.duality_gap
            first = np.take_along_axis(queries_of_games(history), reached.argmax(0)[None], 0)[0]
            figures["to_target"] = np.where(reached.any(0), first, np.inf)
        result = RunResult(
            task=self,
            queries=game.progress.queries_per_prompt,
            rounds=game.progress.round,
            seconds=watch.seconds,
            certificate=exact.certificate,
            figures=figures,
        )
        return result, keeper.signal

    def _trainer(self, callbacks: list[L.Callback]) -> L.Trainer:
        entry, name = self.entry, str(self.folder.relative_to(self.output))
        logger = TensorBoardLogger(self.output, name, version="", default_hp_metric=False)
        logger.log_hyperparams(
            {"game": entry.game, "beta": entry.beta, "algorithm": entry.label, "seed": self.seed},
            {"hp/exploitability": math.nan, "hp/exploitability_max": math.nan},
        )
        options = {"accelerator": "cpu", **entry.trainer, **SILENT_TRAINER}
        return L.Trainer(
            **options | {"enable_checkpointing": True},
            devices=1,
            logger=logger,
            callbacks=callbacks,
        )


def queries_of_games(history: dict[str, Any]) -> Array:
    """The queries that each game had asked by each round, [R, C]."""
    shape = history["exploitability"].shape
    each: Array = history.get(QUERIES_OF_GAMES, history["queries"][:, None])
    return np.broadcast_to(each, shape)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a run of C independent games; all figures are inf where it diverged."""

    task: Task
    queries: int  # preference queries for each prompt
    rounds: int  # that were played
    seconds: float  # wall time
    certificate: float  # exploitability of the pi* of kl_to_nash and span, the worst of the C games
    # exploitability, kl_to_nash and span at the end, and with a target the queries to_target, which
    # are inf where it was not reached; [C] each
    figures: dict[str, Array]

    def write(self) -> None:
        """Keep it beside the run's logs, whole or not at all."""
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        figures = {name: values.tolist() for name, values in self.figures.items()}
        with written(self.task.folder / RESULT) as beside:
            beside.write_text(json.dumps({**numbers, "figures": figures}) + "\n")

    @classmethod
    def read(cls, task: Task) -> RunResult | None:
        """What `write` has kept of a run; None where it has not ended."""
        try:
            kept = json.loads((task.folder / RESULT).read_text())
            figures = {name: np.array(values) for name, values in kept["figures"].items()}
            return cls(task=task, figures=figures, **{name: kept[name] for name in _NUMBERS})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


class _Watch(L.Callback):
    """Reports progress, and ends a run whose games are all at the target."""

    def __init__(self, task: Task, report: Callable[[int], Any]) -> None:
        self.task = task
        self.report = report
        self.position = 0  # that was reported
        self._begun, self._before = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Wall time of the run, of its parts together where it was interrupted."""
        return self._before + time.monotonic() - self._begun

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["seconds"]

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, OnlineGame)
        progress, gap = pl_module.progress, self.task.duality_gap
        by_queries = self.task.budget.queries is not None
        position = progress.queries_per_prompt if by_queries else progress.round
        self.report(position - self.position)
        self.position = position
        if gap is None or progress.step or progress.gradient_step:
            return
        table, reference = pl_module.oracle.table, pl_module.log_policy("reference")
        assert table is not None  # `read_entries` has made sure of it
        beta = pl_module.beta if self.task.exploitability == "regularised" else 0.0
        if (2 * exploitability(table, pl_module.log_policy(), reference, beta) < gap).all():
            trainer.should_stop = True


class WorkerPool:
    """Plays runs; what comes of them does not depend on the number of processes.

    A ``ProcessPoolExecutor`` would not do: it does not say which run's process died or how, it
    cannot end processes that are at work, and where this one is killed it leaves them behind. A
    worker here has a pipe, and ends when nobody is at the other end. Where one run goes on at a
    time, it is played in this process. The bar is named by the run that began last.
    """

    def __init__(self, processes: int, bar: tqdm) -> None:
        self._processes = processes
        self._bar = bar
        self._workers: list[_Worker] = []

    def play(self, tasks: Sequence[Task]) -> Iterator[RunResult]:
        """Play runs, and yield what came of them in this order."""
        if self._processes > 1:
            yield from self._side_by_side(tasks)
        else:
            for task in tasks:
                self._bar.set_description(task.name, False)
                yield task.play(self._bar.update)

    def close(self) -> None:
        """End the processes, whatever they do."""
        for worker in self._workers:
            worker.process.kill()  # Lightning would only remember another signal
            worker.process.join()
            worker.connection.close()

    def _side_by_side(self, tasks: Sequence[Task]) -> Iterator[RunResult]:
        waiting = deque(tasks)
        ended: dict[str, RunResult] = {}  # by name; some end before one that comes first
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
        with suppress(OSError):  # it has died, as `receive` will find
            self.connection.send(task)

    def receive(self) -> int | RunResult:
        """The next advance of its run, or what came of it; a failure is raised."""
        answer: int | RunResult | Exception
        try:
            answer = self.connection.recv()
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
                answer = UserError(str(error))
            except Exception:
                answer = RuntimeError(f"the run {task.name} failed:\n{traceback.format_exc()}")
            connection.send(answer)
