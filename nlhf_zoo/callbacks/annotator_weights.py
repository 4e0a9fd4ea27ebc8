"""Annotators of a population weighted by the game, so that those served worst count most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.callbacks.logs import is_logged
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import ClosedForm
from nlhf_zoo.oracles import BernoulliLabels, BudgetedOracle, EnsembleOracle, PreferenceOracle
from nlhf_zoo.records import PLAIN, Comparison, Prompts
from nlhf_zoo.records.random_streams import random_stream
from nlhf_zoo.solvers import win_rate

_POLICY, _REFERENCE = {"policy": 1.0}, {"reference": 1.0}


class AnnotatorWeights(L.Callback):
    r"""Weigh the members of an `EnsembleOracle` anew before each round.

    An adversary who is regularised by entropy picks them against the policy:

    .. math:: w = \arg\min_w \sum_j w_j v_j(\pi) + \tau KL(w \| \nu)
        \; \propto \; \nu_j e^{-v_j(\pi) / \tau}, \qquad
        v_j(\pi) = P_j(\pi \succ \mu) - \tfrac12,

    with :math:`\nu` the weights that the ensemble was given. So the members whom the policy serves
    worst, as compared with the reference, count most, and the round plays the game of
    :math:`\sum_j w_j P_j`. Large tau is the population itself. A fixed point is an equilibrium of
    the game of its own weights; the adversary's measure, the win rate against the reference, is
    ours, as self-play gives every member 1/2.

    Over tables v is exact and costs nothing. Else each member is asked about responses that are
    drawn for this alone, to the prompts of the round; what it answers is in the ledgers.

    `annotators/weight_0`, ... and `annotators/win_rate_0`, ... are logged, thinned as rounds are.

    Args:
        tau: temperature of the adversary, in units of the payoff.
        num_responses: of each player to a prompt, where members are no tables.

    Raises:
        UserError: tau is no number above 0, or there are too few responses.
    """

    def __init__(self, tau: float = 0.1, num_responses: int = 16) -> None:
        if not (math.isfinite(tau) and tau > 0):
            raise UserError(f"AnnotatorWeights.tau must be a finite number above 0, not {tau}")
        if num_responses < 1:
            raise UserError(
                f"AnnotatorWeights.num_responses must be at least 1, but it is {num_responses}"
            )
        self.tau = tau
        self.num_responses = num_responses
        self._prior: list[float] = []
        self._weights: list[float] = []  # of the round that is played

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a game that has no population, or whose rounds nobody could come between."""
        if not isinstance(pl_module, OnlineGame):
            raise UserError(
                f"AnnotatorWeights weighs oracles, and the model is a {type(pl_module).__name__}"
            )
        realisation, rollout = pl_module.realisation, pl_module.rollout
        population = _population(pl_module.oracle)
        self._prior = self._prior or [*population.weights]
        if len({member.payoff_bound for member in population.members}) > 1:
            raise UserError(
                "AnnotatorWeights compares what members pay, and theirs have different ranges: "
                "give all of them one payoff and one bound"
            )
        if isinstance(realisation, ClosedForm) and realisation.rounds_per_step > 1:
            raise UserError(
                "AnnotatorWeights comes before each round, and the closed form plays "
                f"{realisation.rounds_per_step} in a step: set model.realisation.rounds_per_step "
                "to 1"
            )
        if pl_module.algorithm.adaptive:
            raise UserError(
                "AnnotatorWeights changes the game, and an adaptive step remembers its products: "
                "give model.algorithm.eta a number or null"
            )
        if rollout.ahead or rollout.replay:
            raise UserError(
                "AnnotatorWeights changes the game, and rollouts of earlier rounds were judged by "
                "another: set model.rollout.ahead to false and replay to 0"
            )
        if trainer.world_size > 1 and not _is_exact(_population(pl_module.oracle)):
            raise UserError(
                "AnnotatorWeights compares responses in one process alone: set trainer.devices to "
                "1, or give oracles of tables"
            )

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """In a round that is resumed its own weights count on."""
        assert isinstance(pl_module, OnlineGame)
        if self._weights and not pl_module.between_rounds:
            _population(pl_module.oracle).reweigh(self._weights)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not at the end of a batch: a checkpoint of the round before has that round's weights.
        assert isinstance(pl_module, OnlineGame)
        if not pl_module.between_rounds:
            return
        population = _population(pl_module.oracle)
        values = pl_module.accounts.unless_stopped(partial(self.values, pl_module, batch))
        prior = torch.tensor(self._prior, dtype=torch.float64)
        self._weights = torch.softmax(prior.log() - values / self.tau, -1).tolist()
        population.reweigh(self._weights)
        pl_module.estimator.products.clear()  # of the weights before
        if is_logged(pl_module.progress.round):
            self._log(trainer, pl_module.progress.round, values)

    def _log(self, trainer: L.Trainer, number: int, values: Tensor) -> None:
        figures = {f"annotators/weight_{j}": weight for j, weight in enumerate(self._weights)}
        rates = (values + 0.5).tolist()
        figures |= {f"annotators/win_rate_{j}": rate for j, rate in enumerate(rates)}
        for logger in trainer.loggers:
            logger.log_metrics(figures, number)

    @torch.no_grad()
    def values(self, game: OnlineGame, prompts: Prompts) -> Tensor:
        """P_j(policy > reference) - 1/2 of each member, the mean over prompts, float64 [M]."""
        members = _population(game.oracle).members
        if _is_exact(_population(game.oracle)):
            laws = [game.log_policy(player).double() for player in ("policy", "reference")]
            tables = [member.table for member in members]
            rates = [win_rate(P, *laws).mean().cpu() for P in tables if P is not None]
            return torch.stack(rates) - 0.5
        rng = random_stream(0, 0, game.progress.round, game.device, "annotators")
        encoded = game.policy.encode(prompts)
        ours, theirs = (
            game.policy.sample(player, encoded, self.num_responses, PLAIN, rng)
            for player in (_POLICY, _REFERENCE)
        )
        found: list[Tensor] = []
        for member in members:
            answer: Comparison = member(encoded, ours, theirs)
            rate, valid = answer.average(theirs.weight)
            # A member without any answer is told from no other one: it keeps its prior weight.
            found.append(rate[valid].double().mean().cpu() if valid.any() else torch.tensor(0.5))
        return torch.stack(found).double() - 0.5

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"prior": self._prior, "weights": self._weights}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._prior, self._weights = [*state_dict["prior"]], [*state_dict["weights"]]


def _population(oracle: PreferenceOracle) -> EnsembleOracle:
    """The ensemble whose answers a game is paid by, within labels and budgets."""
    inside = oracle
    while isinstance(inside, BernoulliLabels | BudgetedOracle):
        inside = inside.oracle
    if not isinstance(inside, EnsembleOracle):
        raise UserError(
            f"AnnotatorWeights weighs the members of an EnsembleOracle, and the game is paid by "
            f"{type(inside).__name__}: put the ensemble there (of Transformed members, if payoffs "
            "are transformed)"
        )
    return inside


def _is_exact(population: EnsembleOracle) -> bool:
    """Whether all members answer from tables."""
    return all(member.answers_table for member in population.members)
