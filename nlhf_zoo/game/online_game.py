"""The online game: play, judge, improve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric
from typing_extensions import override

from nlhf_zoo.algorithms.base import PolicyOptimizer
from nlhf_zoo.algorithms.closed_form import Trajectory
from nlhf_zoo.algorithms.torch_optimizers import SEVERAL_CALLS
from nlhf_zoo.errors import UserError
from nlhf_zoo.game import checkpointing, log_probs
from nlhf_zoo.game.accounting import Accounts, Progress, counts_of_processes
from nlhf_zoo.game.compatibility import check_parts, check_precision, plan_of
from nlhf_zoo.game.evaluation import Validation
from nlhf_zoo.game.lightning_internals import trainer_of
from nlhf_zoo.game.log_probs import log_prob_of_all, score
from nlhf_zoo.game.micro_batches import MicroBatches, StepTimer
from nlhf_zoo.game.payoffs import PayoffEstimator, Payoffs, Versions
from nlhf_zoo.game.playing import Fresh
from nlhf_zoo.game.realisation import ClosedForm, Realisation
from nlhf_zoo.game.reuse import Reuse
from nlhf_zoo.game.rollout import Enumerate, Rollout
from nlhf_zoo.game.sharding import ShardedModule
from nlhf_zoo.metrics.processes import Mean, StepMean
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.records import Prompts, ProximalStep, Responses


class OnlineGame(ShardedModule):
    """The online game between a policy and itself, judged by a preference oracle.

    Args:
        policy: who plays.
        oracle: who judges.
        algorithm: how the policy improves.
        beta: temperature of the KL regularisation to the reference.
        optimizer: for gradient steps; called on the policy's trained parameters. Adam if it is not
            given.
        lr_scheduler: for gradient steps; stepped with the optimiser.
        rollout: which responses enter a step; all of them by default.
        realisation: how a proximal step is made; in closed form by default.
        allow_stale: train on responses that earlier weights drew, as an asynchronous generator
            hands them over; the policy gradient is then biased.
        max_invalid: largest share of invalid answers, over twenty training steps, or all where
            there are fewer; above it the run stops, for little is learnt of an oracle that does not
            answer.
        micro_batches: parts of a batch of prompts, for which responses are drawn, and judged, one
            part after the other.
        overlap_judging: judge each part while responses to the next are drawn, which is worth it
            where judging is waiting, as for a server. An oracle is asked in the same order, so that
            nothing else changes.

    Raises:
        UserError: the parts do not fit each other.
    """

    def __init__(
        self,
        policy: Policy,
        oracle: PreferenceOracle,
        algorithm: PolicyOptimizer,
        beta: float = 0.1,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        rollout: Rollout | None = None,
        realisation: Realisation | None = None,
        allow_stale: bool = False,
        max_invalid: float = 0.5,
        micro_batches: int = 1,
        overlap_judging: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= max_invalid <= 1:
            raise UserError(f"model.max_invalid is a share, in [0, 1], but it is {max_invalid}")
        self.policy = policy
        self.oracle = oracle
        self.algorithm = algorithm
        self.beta = beta
        # No class as the default: jsonargparse hands a default's arguments on to another class, and
        # AdamW's weight decay would draw every policy to the uniform one.
        self.optimizer = optimizer or torch.optim.Adam
        self.lr_scheduler = lr_scheduler
        self.rollout = rollout or Enumerate()
        self.realisation = realisation or ClosedForm()
        self.allow_stale, self.max_invalid = allow_stale, max_invalid
        self.micro_batches = MicroBatches(micro_batches, overlap_judging)
        self.reuse = None if self.rollout.epochs is None else Reuse()
        self.rollout_prompts: int | None = None  # of this process; the data module says it
        self.strict_loading = False  # `on_load_checkpoint` sees to it that nothing is missing
        self.metrics = nn.ModuleDict()
        self.validation = Validation(oracle.payoff_bound)
        self.timer = StepTimer()
        self.progress = Progress()
        self.versions = Versions()
        self.estimator = PayoffEstimator(oracle, policy, self.versions)
        self.accounts = Accounts(oracle, partial(counts_of_processes, self), max_invalid)
        self.mean = StepMean()
        self.round_start: dict[str, Any] = {}  # what a half step goes back to
        self.loads_oracle = True  # from a checkpoint, unless it is of another oracle
        self.trajectory: Trajectory | None = None  # of the last training step in closed form
        self.max_rounds: int | None = None
        self.max_queries: int | None = None
        self._plan: Sequence[ProximalStep] | None = None
        self._accumulated = 0  # batches since the last gradient step
        # Lightning must not run a backward where there is none.
        self.automatic_optimization = not self.realisation.closed_form
        check_parts(self, micro_batches)
        policy.versions = self.versions
        players = (*algorithm.players, *self.rollout.players)
        policy.bind(players, oracle.support, oracle.action_names)

    def training_step(self, prompts: Prompts, batch_idx: int) -> Tensor | None:
        """One gradient step of a proximal step; or, in closed form, many rounds."""
        return self.realisation.take(self, prompts)

    def surrogate_loss(self, prompts: Prompts) -> Tensor:
        """Play, judge, improve: the loss along whose gradient the current step is taken."""
        if self.reuse is None:
            step, prompts = self.step, self.policy.encode(prompts)
            played = self.play_and_judge(step, prompts)
            with self.timer.phase("score"):
                loss = self.improve(step, prompts, *played)
        else:
            loss = self.reuse.loss(self, prompts)
        self._accumulated += 1
        self.timer.begin_update()
        return loss

    def play_and_judge(self, step: ProximalStep, prompts: Prompts) -> tuple[Responses, Payoffs]:
        """Draw responses and judge them, one micro-batch after the other.

        Raises:
            OracleStoppedError: the oracle cannot be asked any more, or answers too little.
        """
        playing = Fresh(self, step) if self.reuse is None else self.reuse.recording(self, step)
        responses, _, payoffs = self.accounts.unless_stopped(
            lambda: self.micro_batches(prompts, playing.play, playing.judge, self.timer)
        )
        counted = payoffs, playing.drawn, not self.accumulates, playing.steps
        self.accounts.enter(self.progress, *counted)
        return responses, payoffs

    def judge(
        self,
        step: ProximalStep,
        prompts: Prompts,
        responses: Responses,
        opponents: Sequence[Responses],
        asked: Sequence[Any] | None = None,
    ) -> Payoffs:
        """Ask the oracle for the payoff of each response of a micro-batch.

        `play_and_judge` calls this for each part, and counts what was asked; where judging
        overlaps, in a thread of its own.

        Args:
            step: the proximal step.
            prompts: B prompts of the part.
            responses: K scored responses a prompt.
            opponents: responses of each opponent of the step; in self-play, the scored ones.
            asked: which pairs are asked about, as `Rollout.asked` has them; None is all.
        """
        return self.estimator(step, prompts, responses, opponents, asked)

    def improve(
        self, step: ProximalStep, prompts: Prompts, responses: Responses, payoffs: Payoffs
    ) -> Tensor:
        """The algorithm's loss, so that its gradients are those of `StepMean`.

        Raises:
            UserError: the responses were drawn by earlier weights, and that is not allowed.
            DivergenceError: the loss is not finite.
        """
        frozen = None if self.reuse is None else self.reuse.log_probs
        if not self.allow_stale and frozen is None:
            log_probs.refuse_stale(self.policy, step, responses)
        clip = self.rollout.clip if frozen is not None and self.algorithm.clips else None
        batch = score(self.policy, step, prompts, responses, payoffs, self.beta, frozen, clip)
        judged, trainer = int(payoffs.valid.any(-1).sum()), trainer_of(self)
        own = Mean(self.algorithm.loss(step, batch).sum(), judged)
        others = log_probs.training_figures(step, responses, batch, judged, self.algorithm.reuse)
        loss, figures = self.mean.take(trainer, own, others, begins=not self.accumulates)
        log_probs.refuse_diverged_loss(figures["train/loss"], self.progress.round)
        for tag, figure in figures.items() if trainer is not None else ():
            self.log(tag, figure, prog_bar=tag == "train/loss")
        return loss

    def on_after_backward(self) -> None:
        """Count the backward of each batch."""
        self.timer.end_update()
        self.timer.begin_update()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradients those of the mean over all prompts of the step, before clipping."""
        super().on_before_optimizer_step(optimizer)
        self.mean.complete(optimizer, self.trainer.accumulate_grad_batches)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a gradient step, then advance the plan.

        Here, and not at the end of a batch: so accumulation and checkpoints agree with the plan.
        """
        batches = self.progress.batches
        super().optimizer_step(*args, **kwargs)  # whatever Lightning hands over
        if self.progress.batches > batches + 1:
            raise UserError(SEVERAL_CALLS)
        self.timer.end_update()
        progress, step, reuse = self.progress, self.step, self.reuse
        self._accumulated = 0
        self.versions.moved("policy")
        progress.gradient_step += 1
        if progress.gradient_step < self.gradient_steps_of_step or (reuse and reuse.goes_on(self)):
            return
        progress.gradient_step = progress.epoch = progress.minibatch = 0
        if step.writes != "policy":
            self.copy_("policy", step.writes)
            checkpointing.return_to(self.round_start, self.policy, self._torch_optimizer())
            self.versions["policy"] = self.round_start["version"]
        progress.step += 1
        if progress.step < len(self.plan):
            return
        self.algorithm.end_round(self, progress.round)
        progress.step = 0
        progress.round += 1
        self.begin_round()

    # The plan and the players -------------------------------------------------------------------

    @property
    def plan(self) -> Sequence[ProximalStep]:
        """The proximal steps of this round."""
        if self._plan is None:
            self._plan = self.rollout.plan(plan_of(self, self.progress.round))
        return self._plan

    @property
    def step(self) -> ProximalStep:
        """The proximal step that is being taken."""
        return self.plan[self.progress.step]

    @property
    def gradient_steps_of_step(self) -> int:
        """Optimiser steps of the proximal step that is being taken."""
        return self.step.gradient_steps if self.reuse is None else self.reuse.optimizer_steps(self)

    @property
    def between_rounds(self) -> bool:
        """Whether no round is under way."""
        return self.progress.step == self.progress.gradient_step == self._accumulated == 0

    @property
    def accumulates(self) -> bool:
        """Whether gradients of some batches wait for an optimiser step."""
        return self._accumulated != 0

    @property
    def finished(self) -> bool:
        """Whether another round would exceed the budget."""
        return self.rounds_left() == 0 and self.between_rounds

    def set_budget(self, max_rounds: int | None, max_queries: int | None) -> None:
        """Limit the rounds, and the queries for each prompt; a round beyond is not begun."""
        self.max_rounds, self.max_queries = max_rounds, max_queries

    def rounds_left(self) -> int | None:
        """Whole rounds that the budget still allows; None where there is none."""
        left = [] if self.max_rounds is None else [self.max_rounds - self.progress.round]
        if self.max_queries is not None and (needed := self.queries_per_round()):
            queries = self.max_queries - self.progress.queries_per_prompt
            left.append(queries // needed)
        return max(0, min(left)) if left else None

    @property
    def gradient_steps_per_round(self) -> int:
        """Optimiser steps of a round; they see the same prompts. 1 in closed form."""
        return self.realisation.steps_per_round(self)

    def queries_per_round(self) -> int:
        """Preference queries of a round, for each prompt, as the algorithm declares them."""
        rollout = self.rollout
        numbers = rollout.num_responses, rollout.num_opponents, rollout.enumerated
        return self.algorithm.queries(*numbers, **rollout.counting)

    def copy_(self, source: str, target: str) -> None:
        """Make one player equal to another (algorithms call this at the end of a round)."""
        self.policy.copy_(source, target)
        self.versions.copied(source, target)

    def lerp_(self, source: str, target: str, weight: float) -> None:
        """Move a player part of the way to another (algorithms call this at the end of a round)."""
        self.policy.lerp_(source, target, weight)
        if weight == 1:
            self.versions.copied(source, target)
        else:
            self.versions.moved(target)

    def begin_round(self) -> None:
        """Make the plan of the round, and remember its start where a half step goes back to it."""
        self._plan = None
        if any(step.writes != "policy" for step in self.plan):
            start = checkpointing.round_start(self.policy, self._torch_optimizer())
            self.round_start = {**start, "version": self.versions.of("policy")}

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError("the game trains with one optimiser: give model.optimizer one class")
        return optimizer

    # Lightning ----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse a precision that would round what is trained, before it has."""
        check_precision(self.trainer.precision)

    def configure_optimizers(self) -> Any:
        """The optimiser of the policy's trained parameters, and its schedule."""
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        return self.realisation.optimizers(self, parameters)

    def on_train_start(self) -> None:
        """Begin the first round, unless one is being resumed.

        Raises:
            UserError: several processes would play the same closed form.
        """
        self.realisation.begin(self)

    def on_train_end(self) -> None:
        """Nothing is drawn behind it."""
        if self.reuse is not None:
            self.reuse.close()

    def validation_step(self, prompts: Prompts, batch_idx: int) -> None:
        """Measure the policy on held-out prompts, and against the reference."""
        self.validation.step(self, prompts, batch_idx)

    @override
    def test_step(self, prompts: Prompts, batch_idx: int) -> None:
        self.validation_step(prompts, batch_idx)

    def predict_step(self, prompts: Prompts, batch_idx: int) -> Tensor:
        """Log-probabilities of all responses [B, N]."""
        return log_prob_of_all(self.policy, "policy", prompts)

    def log_policy(self, player: str = "policy") -> Tensor:
        """A player's log-probabilities of all responses to a table's prompts, no gradient [C, N].

        Raises:
            UserError: the responses cannot be listed.
        """
        prompts = self.oracle.prompts
        if prompts is None:
            raise UserError("this game has no table of responses: exact metrics need one")
        return log_prob_of_all(self.policy, player, prompts.to(self.device))

    def on_validation_epoch_end(self) -> None:
        """Log what was measured; what was asked for it is counted, too."""
        self.accounts.settle_ledgers()
        self.validation.log(self)

    on_test_epoch_end = on_validation_epoch_end

    def set_before_stop(self, do: Callable[[], None]) -> None:
        """Have something done before the run ends for want of an oracle, in all processes."""
        self.accounts.before_stop = do

    def position(self) -> dict[str, Any]:
        """Where the game stands, weights apart; a training step that fails moves nothing else."""
        return checkpointing.position(self)

    def rewind(self, position: dict[str, Any]) -> None:
        """Go back to a position between two optimiser steps, so that what failed is tried anew.

        What the oracle was asked stays counted in its ledgers.
        """
        checkpointing.rewind(self, position)
        self._accumulated = 0

    def add_metric(self, name: str, metric: Metric) -> None:
        """Register a metric, so that it moves with the game (callbacks call this)."""
        self.metrics[name] = metric

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hold what trains, position, versions and products; not what is loaded from files."""
        checkpointing.save(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        checkpointing.load(self, checkpoint)
        self._plan = None
