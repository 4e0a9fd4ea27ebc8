"""One run: a contender, from one seed, to the end of the budget."""

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

from nlhf_zoo.callbacks import Budget, ExactMetrics, read_history
from nlhf_zoo.cli.compare.configuration import Configuration
from nlhf_zoo.cli.compare.contenders import Contender
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.solvers import exploitability

Array = NDArray[np.float64]

_METRICS = {"regularised": "exploitability", "unregularised": "exploitability_unregularised"}


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a run of C independent games; all figures are inf where it diverged.

    Args:
        contender: who ran.
        seed: of the run.
        queries: preference queries for each prompt.
        rounds: rounds that were played.
        seconds: wall time.
        certificate: exploitability of the pi* that KL and span refer to, the worst of the C games.
        exploitability: at the end [C].
        kl_to_nash: at the end [C].
        span: at the end [C].
        to_target: queries to the target [C], inf where it was not reached; None without one.
        folder: its logs.
    """

    contender: Contender
    seed: int
    queries: int
    rounds: int
    seconds: float
    certificate: float
    exploitability: Array
    kl_to_nash: Array
    span: Array
    to_target: Array | None
    folder: Path


def run_folder(output: Path, contender: Contender, seed: int) -> Path:
    """Where a run logs."""
    return output / contender.where / contender.label / f"seed_{seed}"


def play(
    contender: Contender, seed: int, configuration: Configuration, report: Callable[[int], Any]
) -> Run:
    """Play.

    Args:
        contender: who.
        seed: of the run.
        configuration: of the comparison.
        report: called with the queries (rounds, if the budget is in rounds) since the last call.
    """
    begun = time.monotonic()
    L.seed_everything(seed, verbose=False)
    game = contender.make()
    folder = run_folder(configuration.output, contender, seed)
    name = str(folder.relative_to(configuration.output))
    logger = TensorBoardLogger(configuration.output, name, version="", default_hp_metric=False)
    figures = {"hp/exploitability": math.nan, "hp/exploitability_max": math.nan}
    logger.log_hyperparams(
        {
            "game": contender.game,
            "beta": contender.beta,
            "algorithm": contender.label,
            "seed": seed,
        },
        figures,
    )
    budget = configuration.budget
    exact, watch = ExactMetrics(), _Watch(configuration, report)
    trainer = L.Trainer(
        **{"accelerator": "cpu", **contender.trainer},
        devices=1,
        max_epochs=-1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=logger,
        callbacks=[exact, Budget(budget.rounds, budget.queries), watch],
    )
    diverged = False
    try:
        trainer.fit(game, TablePrompts())
    except DivergenceError:
        diverged = True  # a result like any other
    except MisconfigurationException as error:
        raise UserError(f"{contender.label} on {contender.where}: {error}") from error
    history = read_history(folder)
    curve = history[metric_of(configuration)]
    return Run(
        contender=contender,
        seed=seed,
        queries=game.progress.queries_per_prompt,
        rounds=game.progress.round,
        seconds=time.monotonic() - begun,
        certificate=exact.certificate,
        exploitability=_told(curve[-1], diverged),
        kl_to_nash=_told(history["kl_to_nash"][-1], diverged),
        span=_told(history["span"][-1], diverged),
        to_target=_queries_to(configuration, history["queries"], curve),
        folder=folder,
    )


def metric_of(configuration: Configuration) -> str:
    """The name of the exploitability that is reported, in histories."""
    return _METRICS[configuration.exploitability]


class _Watch(L.Callback):
    """Reports progress, and ends a run whose games are all at the target."""

    def __init__(self, configuration: Configuration, report: Callable[[int], Any]) -> None:
        self.by_queries = configuration.budget.queries is not None
        self.target = configuration.target
        self.regularised = configuration.exploitability == "regularised"
        self.report = report
        self._reported = 0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at where the game stands."""
        assert isinstance(pl_module, OnlineGame)
        progress = pl_module.progress
        position = progress.queries_per_prompt if self.by_queries else progress.round
        self.report(position - self._reported)
        self._reported = position
        if self.target is None or progress.step or progress.gradient_step:
            return
        table, reference = pl_module.oracle.table, pl_module.log_policy("reference")
        assert table is not None  # `read_contenders` has made sure of it
        beta = pl_module.beta if self.regularised else 0.0
        gap = 2 * exploitability(table, pl_module.log_policy(), reference, beta)
        if (gap < self.target.duality_gap).all():
            trainer.should_stop = True


def _told(figures: Array, diverged: bool) -> Array:
    """A run that has left the numbers is told as infinitely far off, in all its games."""
    return np.where(np.isnan(figures) | diverged, np.inf, figures)


def _queries_to(configuration: Configuration, queries: Array, curve: Array) -> Array | None:
    """The first queries [C] at which the duality gap, [R, C] halves of it, is below the target."""
    if configuration.target is None:
        return None
    there = 2 * curve < configuration.target.duality_gap
    return np.where(there.any(0), queries[there.argmax(0)], np.inf)
