"""Exact metrics of every round of a tabular game."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.algorithms.closed_form import Trajectory
from nlhf_zoo.callbacks.history import History, folder_of_files
from nlhf_zoo.callbacks.logs import is_logged, log_by_query
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.oracles import EnsembleOracle
from nlhf_zoo.solvers import PreparedGame, Solution, prepare_game, regularised_nash

# Metric -> tag in TensorBoard.
TAGS = {
    "exploitability": "game/exploitability",
    "exploitability_unregularised": "game/exploitability_unregularised",
    "kl_to_nash": "game/kl_to_nash",
    "span": "game/span",
    "kl_to_reference": "game/kl_to_reference",
    "win_rate_vs_reference": "win_rate/vs_reference",
}

# The queries of each game, a column of histories where they differ: with an adaptive step.
QUERIES_OF_GAMES = "queries_of_games"

# What `ModelCheckpoint(monitor=...)`, `EarlyStopping` and the progress bar can see during a fit.
MONITORED = ("game/exploitability", "game/exploitability_max")


class ExactMetrics(L.Callback):
    """Exploitability, KL to the equilibrium, span and win rate of every round, exactly.

    Every round goes to the file `history.bin` of the run's folder (`read_history` reads it);
    without a logger to that of the Trainer's `default_root_dir`, where it is given (the working
    folder as ".": by its absolute name Lightning has it where nobody gave any). TensorBoard gets a
    thinned curve, mean and maximum over the prompts, against rounds (`game/...`) and against
    queries (`by_query/...`).

    Args:
        every: rounds between two that are measured.
        nash: whether to solve for the equilibrium, which KL to it and span need; at many thousand
            actions it takes long.
    """

    def __init__(self, every: int = 1, nash: bool = True) -> None:
        if every < 1:
            raise UserError(f"ExactMetrics measures every so many rounds, at least 1, not {every}")
        self.every = every
        self.nash = nash
        self.latest: dict[str, float] = {}
        self._rows = 0
        self._measured = -1  # the last round that was measured
        self._history: History | None = None
        self._game: PreparedGame | None = None
        self._reweighed: list[int] = []  # how often the weights of populations had moved
        self.certificate = float("nan")  # the exploitability of the pi* that the metrics use

    @staticmethod
    def check(game: OnlineGame) -> None:
        """Refuse a game that has no exact metrics.

        Raises:
            UserError: its oracle holds no table.
        """
        if game.oracle.table is None:
            raise UserError(
                "ExactMetrics needs an oracle that holds its table, and "
                f"{type(game.oracle).__name__} does not: leave it out of trainer.callbacks"
            )

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._prepare(_game(pl_module))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the history where it stood, and measure the start."""
        game = _game(pl_module)
        if (folder := folder_of_files(trainer)) is not None:
            names = [n for n in TAGS if self.nash or n not in ("kl_to_nash", "span")]
            names += [QUERIES_OF_GAMES] if game.algorithm.adaptive else []
            self._history = History(folder, names, len(game.log_policy()))
            self._history.cut(self._rows)
        if self._rows == 0:
            self._measure(trainer, game, _current_round(game))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Measure the rounds that were finished."""
        game, rows = _game(pl_module), self._rows
        if game.trajectory is not None:
            self._measure(trainer, game, self._thin(game.trajectory))
        elif (
            game.progress.round > self._measured
            and game.progress.round % self.every == 0
            and game.between_rounds
        ):
            self._measure(trainer, game, _current_round(game))
        if self._rows == rows:
            return
        # For the progress bar and for whoever monitors; loggers get rounds, not Lightning's steps.
        # Not at the start: Lightning 2.6 would keep what another hook has logged by the same name.
        for tag in MONITORED:
            value, shown = self.latest[tag.removeprefix("game/")], tag == "game/exploitability"
            game.log(tag, value, prog_bar=shown, logger=False, rank_zero_only=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the last figures beside the hyper-parameters."""
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"hp/{name}": value for name, value in self.latest.items()}, pl_module.global_step
            )
        self._close()

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the metrics of the policy as it is."""
        game = _game(pl_module)
        measured = self._prepare(game).measure(game.log_policy()[None])
        figures = {TAGS[name]: value.mean() for name, value in measured.items()}
        figures |= {TAGS[name] + "_max": value.max() for name, value in measured.items()}
        # Lightning would log against its own steps; a metric of this name takes their place.
        axis = {"step": float(game.progress.round)}
        figures["game/nash_exploitability"] = torch.tensor(self.certificate)
        # All processes have the same; Lightning warns of each that is not averaged.
        game.log_dict({**figures, **axis}, sync_dist=True)

    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The rows that a checkpoint counts must be in the file before it."""
        if self._history is not None:
            self._history.flush()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows, "measured": self._measured}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = state_dict["rows"]
        self._measured = state_dict["measured"]

    def _prepare(self, game: OnlineGame) -> PreparedGame:
        populations = [p for p in game.oracle.modules() if isinstance(p, EnsembleOracle)]
        weights = [population.reweighed for population in populations]
        if self._game is None or weights != self._reweighed:  # with others it is another game
            self._reweighed = weights
            self.check(game)
            assert game.oracle.table is not None
            table = game.oracle.table.double()
            log_reference = game.log_policy("reference").double()
            solution: Solution | None = None
            if self.nash:
                solution = regularised_nash(table, log_reference, game.beta, progress=True)
                self.certificate = float(solution.exploitability.max())
            self._game = prepare_game(
                table, log_reference, game.beta, solution.log_policy if solution else None
            )
        return self._game

    def _thin(self, trajectory: Trajectory) -> Trajectory:
        skip = -trajectory.first_round % self.every
        return Trajectory(
            trajectory.first_round + skip,
            trajectory.queries[skip :: self.every],
            trajectory.log_policy[skip :: self.every],
        )

    def _measure(self, trainer: L.Trainer, game: OnlineGame, trajectory: Trajectory) -> None:
        if not len(trajectory.queries):
            return
        measured = self._prepare(game).measure(trajectory.log_policy)
        metrics = {name: measured[name] for name in TAGS if name in measured}
        rounds = [trajectory.first_round + i * self.every for i in range(len(trajectory.queries))]
        self._measured = rounds[-1]
        self._rows += len(rounds)
        if self._history is not None:
            arrays = {name: value.cpu().numpy() for name, value in metrics.items()}
            if game.algorithm.adaptive:
                each = trajectory.queries.reshape(len(rounds), -1).double()
                shape = len(rounds), trajectory.log_policy.shape[1]
                arrays[QUERIES_OF_GAMES] = each.expand(shape).cpu().numpy()
            asked = trajectory.most_queries.double().cpu().numpy()
            self._history.append(torch.tensor(rounds).double().numpy(), asked, arrays)
        self._log(trainer, game, rounds, trajectory.most_queries, metrics)

    def _log(
        self,
        trainer: L.Trainer,
        game: OnlineGame,
        rounds: list[int],
        queries: Tensor,
        metrics: dict[str, Tensor],
    ) -> None:
        statistics = _statistics(metrics)
        values = torch.stack(list(statistics.values()), 1).tolist()
        last = dict(zip(statistics, values[-1], strict=True))
        self.latest = {tag.removeprefix("game/"): last[tag] for tag in MONITORED}
        if not trainer.is_global_zero:
            return
        for number, asked, row in zip(rounds, queries.tolist(), values, strict=True):
            is_last = number == game.progress.round and game.finished
            if is_logged(number, self.every) or is_last:
                figures = dict(zip(statistics, row, strict=True))
                figures["game/nash_exploitability"] = self.certificate
                figures["oracle/queries_per_prompt"] = float(asked)
                for logger in trainer.loggers:
                    logger.log_metrics(figures, number)
                log_by_query(trainer, figures, asked)

    def _close(self) -> None:
        if self._history is not None:
            self._history.close()
            self._history = None


def _statistics(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean and maximum over the prompts by tag, [R] each, from metrics [R, C]."""
    statistics = {}
    for name, value in metrics.items():
        statistics[TAGS[name]] = value.mean(1)
        if name != "win_rate_vs_reference":  # the worst game is where the others are largest
            statistics[TAGS[name] + "_max"] = value.amax(1)
    return statistics | {"game/duality_gap": 2 * statistics["game/exploitability"]}


def _current_round(game: OnlineGame) -> Trajectory:
    """The round at which the game stands, as a trajectory of one."""
    queries = torch.tensor([game.progress.queries_per_prompt])
    return Trajectory(game.progress.round, queries, game.log_policy()[None])


def _game(module: L.LightningModule) -> OnlineGame:
    if not isinstance(module, OnlineGame):
        raise UserError(
            f"this callback reads an OnlineGame, and the model is a {type(module).__name__}"
        )
    return module
