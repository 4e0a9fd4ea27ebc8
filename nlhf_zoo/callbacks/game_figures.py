"""Figures of a game at the end of a run: convergence, the path on the simplex, the preferences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from numpy.typing import NDArray
from typing_extensions import override

from nlhf_zoo.callbacks.exact_metrics import ExactMetrics
from nlhf_zoo.callbacks.history import read_history
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.lightning_internals import is_trial
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.metrics.figures.canvas import new_figure, pixels, save_png
from nlhf_zoo.metrics.figures.games import draw_convergence, draw_preferences, draw_simplex
from nlhf_zoo.metrics.figures.styles import colour_of
from nlhf_zoo.metrics.processes import run_folder
from nlhf_zoo.solvers import regularised_nash

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = "figures"  # of a run's folder
_POINTS = 2000  # of a path, above which every second is left out
_ACTIONS = 12  # of a table that is drawn

Draw = Callable[["Axes"], object]


class GameFigures(L.Callback):
    """Draw, when a run has ended, what can be seen of a game whose table is known.

    `figures/convergence` is the exploitability of the regularised game against queries, beside the
    rate of theory where queries are exact; `figures/simplex` the path of the policy of the first
    prompt, where it has three actions; `figures/preferences` that prompt's table, where it has at
    most twelve. They go to the loggers as images, and into the run's folder as PNG files.

    They need `ExactMetrics` and its history, and a run that is worth it.

    Args:
        min_rounds: a run of fewer rounds has no figures: its curves have few points.
    """

    def __init__(self, min_rounds: int = 20) -> None:
        if min_rounds < 0:
            raise UserError(f"min_rounds of GameFigures must be at least 0, but it is {min_rounds}")
        self.min_rounds = min_rounds
        self._path: list[list[float]] = []  # log-probabilities of the three actions
        self._every = 1  # rounds between two of its points
        self._seen = -1  # the last round that was looked at

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, OnlineGame) and self._seen < 0 and _num_actions(pl_module) == 3:
            self._add(pl_module.progress.round, pl_module.log_policy()[None])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Remember where the policy is."""
        if not isinstance(pl_module, OnlineGame) or _num_actions(pl_module) != 3:
            return
        played, number = pl_module.trajectory, pl_module.progress.round
        if played is not None:
            self._add(played.first_round, played.log_policy)
        elif pl_module.between_rounds and number > self._seen:
            self._add(number, pl_module.log_policy()[None])

    def _add(self, first: int, log_policy: torch.Tensor) -> None:
        """Add rounds from the first on, log-probabilities up to a constant [R, C, N]."""
        rows = log_policy[:, 0, :3].double().log_softmax(-1).tolist()
        self._seen = first + len(rows) - 1
        self._path += [row for i, row in enumerate(rows, first) if i % self._every == 0]
        while len(self._path) > _POINTS:
            self._path = self._path[::2]
            self._every *= 2

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, OnlineGame) or is_trial(trainer):
            return
        folder = run_folder(trainer)  # asks all processes
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # its connector sets them
        measured = any(isinstance(callback, ExactMetrics) for callback in callbacks)
        enough = pl_module.progress.round >= self.min_rounds
        if not (trainer.is_global_zero and measured and enough and trainer.loggers and folder):
            return
        place = Path(folder) / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        for name, (width, height), draw in self._figures(pl_module, Path(folder)):
            with new_figure(width, height) as figure:
                draw(figure.subplots())
                image = pixels(figure)
            save_png(image, place / f"{name}.png")
            for logger in trainer.loggers:
                log_image(logger, f"figures/{name}", image, pl_module.progress.round)

    def _figures(
        self, game: OnlineGame, folder: Path
    ) -> Iterator[tuple[str, tuple[float, float], Draw]]:
        """Name, size in inches and content of each figure."""
        colour, beta = colour_of(type(game.algorithm).__name__), game.beta
        bound = game.oracle.payoff_bound
        entry = "P(row over column)" if bound == 0.5 else "payoff of row against column"
        history, theory = read_history(folder), game.rollout.enumerated
        queries, values = history["queries"], history["exploitability"]
        yield (
            "convergence", (6.0, 4.0),
            lambda ax: draw_convergence(ax, queries, values, beta, colour, theory, 2 * bound),
        )  # fmt: skip
        number = _num_actions(game)
        if number is None or number > _ACTIONS:
            return
        assert game.oracle.table is not None  # `ExactMetrics` has seen to it
        table = game.oracle.table[:1, :number, :number].double()
        names = _names(game, number)
        yield (
            "preferences", (5.5, 4.6),
            lambda ax: draw_preferences(ax, table[0].cpu().numpy(), names, entry, bound),
        )  # fmt: skip
        if number == 3 and self._path:
            log_reference = game.log_policy("reference")[:1, :3].double()
            nash = regularised_nash(table, log_reference, beta).log_policy
            marks = {
                "reference μ": (log_reference[0].exp().cpu().numpy(), "s"),
                f"equilibrium π*, β = {beta:g}": (nash[0].exp().cpu().numpy(), "*"),
            }
            path = np.exp(np.array(self._path))

            def draw(ax: Axes) -> None:
                draw_simplex(ax, path, marks, colour, names)
                ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0))

            yield "simplex", (5.0, 5.0), draw

    @override
    def state_dict(self) -> dict[str, Any]:
        path = torch.tensor(self._path, dtype=torch.float64)
        return {"path": path, "every": self._every, "seen": self._seen}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._path = state_dict["path"].tolist()
        self._every, self._seen = state_dict["every"], state_dict["seen"]


def log_image(logger: Logger, tag: str, image: NDArray[np.uint8], step: int) -> None:
    """Give an image [height, width, 3] to a logger, where it takes images."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(tag, image, step, dataformats="HWC")
    elif callable(log := getattr(logger, "log_image", None)):  # as W&B's has it
        log(tag, [image], step)


def _num_actions(game: OnlineGame) -> int | None:
    """Actions of the first prompt of a table, without those that fill it up; None without one."""
    table, support = game.oracle.table, game.oracle.support
    if table is None:
        return None
    return table.shape[-1] if support is None else int(support[0].sum())


def _names(game: OnlineGame, number: int) -> list[str]:
    names = game.oracle.action_names
    shown = [*map(str, range(number))] if names is None else names[0][:number]
    return [name if len(name) <= 24 else f"{name[:23]}…" for name in shown]
