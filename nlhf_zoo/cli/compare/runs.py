"""One run: an entry, from one seed, to the end of the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from typing_extensions import override

from nlhf_zoo.callbacks import Budget, ExactMetrics, read_history
from nlhf_zoo.cli.compare.configuration import BudgetLimits
from nlhf_zoo.cli.compare.entries import Entry
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.solvers import exploitability

Array = NDArray[np.float64]

# The exploitability that is reported, as histories name it.
METRICS = {"regularised": "exploitability", "unregularised": "exploitability_unregularised"}


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
        """For messages."""
        return f"{self.entry.where}, {self.entry.label}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where it logs."""
        return self.output / self.entry.where / self.entry.label / f"seed_{self.seed}"

    def play(self, report: Callable[[int], Any]) -> RunResult:
        """Play it.

        Args:
            report: called with the queries (rounds, if the budget is in rounds) since the last
                call, and at the end with what is left of the budget.

        Raises:
            UserError: the Trainer cannot train this game.
        """
        begun = time.monotonic()
        L.seed_everything(self.seed, verbose=False)
        game = self.entry.make()
        exact, watch = ExactMetrics(), _Watch(self, report)
        diverged = self._diverges(game, [exact, watch])
        report(self.budget.counted[0] - watch.position)
        history = read_history(self.folder)
        curve = history[METRICS[self.exploitability]]
        ends = {"exploitability": curve[-1]}
        ends |= {name: history[name][-1] for name in ("kl_to_nash", "span")}
        # A run that has left the numbers is infinitely far off, in all its games.
        figures = {
            name: np.where(np.isnan(end) | diverged, np.inf, end) for name, end in ends.items()
        }
        to_target = None
        if self.duality_gap is not None:
            reached = 2 * curve < self.duality_gap
            to_target = np.where(reached.any(0), history["queries"][reached.argmax(0)], np.inf)
        return RunResult(
            task=self,
            queries=game.progress.queries_per_prompt,
            rounds=game.progress.round,
            seconds=time.monotonic() - begun,
            certificate=exact.certificate,
            figures=figures,
            to_target=to_target,
        )

    def _diverges(self, game: OnlineGame, callbacks: list[L.Callback]) -> bool:
        """Train a game. Returns whether it diverged, which is a result like any other."""
        entry, name = self.entry, str(self.folder.relative_to(self.output))
        logger = TensorBoardLogger(self.output, name, version="", default_hp_metric=False)
        logger.log_hyperparams(
            {"game": entry.game, "beta": entry.beta, "algorithm": entry.label, "seed": self.seed},
            {"hp/exploitability": math.nan, "hp/exploitability_max": math.nan},
        )
        trainer = L.Trainer(
            **{"accelerator": "cpu", **entry.trainer},
            devices=1,
            max_epochs=-1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=logger,
            callbacks=[Budget(self.budget.rounds, self.budget.queries), *callbacks],
        )
        try:
            trainer.fit(game, TablePrompts())
        except DivergenceError:
            return True
        except MisconfigurationException as error:
            raise UserError(f"{entry.label} on {entry.where}: {error}") from error
        return False


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a run of C independent games; all figures are inf where it diverged."""

    task: Task
    queries: int  # preference queries for each prompt
    rounds: int  # that were played
    seconds: float  # wall time
    certificate: float  # exploitability of the pi* of kl_to_nash and span, the worst of the C games
    figures: dict[str, Array]  # exploitability, kl_to_nash and span at the end [C] each
    to_target: Array | None  # queries to the target [C], inf where it was not reached


class _Watch(L.Callback):
    """Reports progress, and ends a run whose games are all at the target."""

    def __init__(self, task: Task, report: Callable[[int], Any]) -> None:
        self.task = task
        self.report = report
        self.position = 0  # that was reported

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
