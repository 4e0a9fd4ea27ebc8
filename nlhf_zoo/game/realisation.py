"""How a proximal step is realised: exactly, or by gradient steps on a surrogate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.algorithms import torch_optimizers as optimizers
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.algorithms.schedules import followers
from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.game.schedules import budget_spent
from nlhf_zoo.metrics.processes import refuse_uneven_batches
from nlhf_zoo.policies.finite import TabularPolicy
from nlhf_zoo.records import Prompts

if TYPE_CHECKING:
    from nlhf_zoo.game.online_game import OnlineGame

# One training step plays at most this many entries of tables and keeps at most this many
# log-probabilities, so that it lasts about a second and its trajectory stays below 64 MB, whatever
# the size of the game.
_TABLE_ENTRIES = 4_000_000_000
_TRAJECTORY_ENTRIES = 8_000_000


class Realisation(ABC):
    """How a proximal step is realised.

    Attributes:
        closed_form: whether there is no backward, and a training step plays many rounds.
    """

    closed_form: ClassVar[bool]

    @abstractmethod
    def take(self, game: OnlineGame, prompts: Prompts) -> Tensor | None:
        """Take a training step.

        Args:
            game: the game; its position moves on.
            prompts: B prompts.

        Returns:
            the loss whose gradient Lightning is to step along; None where the step is taken.
        """

    @abstractmethod
    def begin(self, game: OnlineGame) -> None:
        """Begin to train, or go on where a checkpoint has left off."""

    @abstractmethod
    def optimizers(self, game: OnlineGame, parameters: Sequence[nn.Parameter]) -> Any:
        """What Lightning is to step with, as ``configure_optimizers`` returns it."""

    @abstractmethod
    def steps_per_round(self, game: OnlineGame) -> int:
        """Optimiser steps of a round; they see the same prompts."""

    def state_dict(self) -> dict[str, Tensor]:
        """What it keeps from one training step to the next, for checkpoints; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027  # optional
        """Take it back; of an empty one, forget what it keeps."""


class ClosedForm(Realisation):
    """Exactly, for policies with one logit an action; many rounds in one training step.

    Args:
        rounds_per_step: rounds that one training step plays at most; large games play fewer.
    """

    closed_form = True

    def __init__(self, rounds_per_step: int = 1000) -> None:
        if rounds_per_step < 1:
            raise ValueError(f"rounds_per_step must be at least 1, but it is {rounds_per_step}")
        self.rounds_per_step = rounds_per_step
        # Of an adaptive algorithm: each game's step size, and the queries that it has asked [C].
        self._each: dict[str, Tensor] = {}

    def rounds(self, num_prompts: int, num_actions: int) -> int:
        """Rounds of one training step; of the game's size alone, so that runs resume exactly."""
        size = num_prompts * num_actions
        most = min(_TRAJECTORY_ENTRIES // size, _TABLE_ENTRIES // (size * num_actions))
        return max(1, min(self.rounds_per_step, most))

    @override
    def take(self, game: OnlineGame, prompts: Prompts) -> None:
        policy, table, progress = game.policy, game.oracle.table, game.progress
        assert isinstance(policy, TabularPolicy)  # `check_parts` has made sure of both
        assert table is not None
        if len(prompts) != len(policy.log_reference):
            raise UserError(
                "the closed form plays all prompts at once: set data.batch_size to null"
            )
        if progress.round == 0:
            self._each = {}  # it may have played another game before
        rounds = self._rounds_now(game)
        if rounds == 0:  # the first round of an adaptive step would exceed the budget
            game.trainer.should_stop = True
            return
        logits = policy.logits()
        engine = ClosedFormRounds(
            game.algorithm,
            game.beta,
            table.to(policy.log_reference),
            policy.log_reference,
            logits,
            game.estimator.products,
            from_start=progress.round == 0,
            step_size=self._each.get("step_size"),
            payoff_bound=game.oracle.payoff_bound,
            scores=game.oracle.score_table,
        )
        played = game.accounts.unless_stopped(lambda: engine.run(progress.round, rounds))
        if not played.log_policy[-1].exp().sum(-1).isfinite().all():
            raise DivergenceError(
                f"the closed form diverged before round {progress.round + len(played.queries)}: "
                "lower the algorithm's step size"
            )
        asked = played.queries[-1]  # of each game, or of every one
        before = self._each.get("queries", torch.tensor(progress.queries_per_prompt))
        game.trajectory = replace(played, queries=played.queries + before.to(asked))
        if engine.step_size is not None:
            self._each = {"step_size": engine.step_size, "queries": game.trajectory.queries[-1]}
        of_all = int(asked.expand(len(prompts)).sum())
        game.accounts.count(progress, 1, of_all, first_batch=False)
        progress.queries_per_prompt = int(game.trajectory.most_queries[-1])
        game.estimator.products = engine.products()
        with torch.no_grad():
            for player, new in engine.logits().items():
                logits[player].copy_(new)
        progress.round += len(played.queries)
        progress.batches += 1
        optimizer = game.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step()  # no gradients, so nothing moves: Lightning counts training steps by it

    def _rounds_now(self, game: OnlineGame) -> int:
        """Rounds of this training step; 0 where the budget does not allow the first one."""
        assert isinstance(game.policy, TabularPolicy)
        rounds, left = self.rounds(*game.policy.log_reference.shape), game.rounds_left()
        if left is None:
            return rounds
        if game.algorithm.adaptive and game.max_queries is not None and not game.estimator.products:
            queries = game.max_queries - game.progress.queries_per_prompt - 1  # the first product
            left = min(left, queries // game.queries_per_round())
        return min(rounds, left)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._each)

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._each = dict(state)

    @override
    def begin(self, game: OnlineGame) -> None:
        if game.trainer.world_size > 1:
            raise UserError("the closed form runs in one process: set trainer.devices to 1")

    @override
    def optimizers(self, game: OnlineGame, parameters: Sequence[nn.Parameter]) -> Any:
        return torch.optim.SGD(parameters, lr=0.0)

    @override
    def steps_per_round(self, game: OnlineGame) -> int:
        return 1


class GradientSteps(Realisation):
    """By gradient steps of the game's optimiser on the algorithm's loss."""

    closed_form = False

    @override
    def take(self, game: OnlineGame, prompts: Prompts) -> Tensor:
        return game.surrogate_loss(prompts)

    @override
    def begin(self, game: OnlineGame) -> None:
        refuse_uneven_batches(game.trainer)
        for config in game.trainer.lr_scheduler_configs:
            if followers(config.scheduler):
                budget_spent(game)  # which refuses a run without an end, before anything is drawn
        if game.between_rounds or not game.round_start:
            game.begin_round()  # also in a second fit, whose optimiser is a new one

    @override
    def optimizers(self, game: OnlineGame, parameters: Sequence[nn.Parameter]) -> Any:
        spent = partial(budget_spent, game)
        return optimizers.configure(parameters, game.optimizer, game.lr_scheduler, spent)

    @override
    def steps_per_round(self, game: OnlineGame) -> int:
        if game.reuse is None:
            return sum(step.gradient_steps for step in game.plan)
        return len(game.plan) * game.reuse.schedule(game, game.rollout_prompts).optimizer_steps
