"""The online game: play, judge, improve."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NoReturn, TypeVar

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torchmetrics import Metric

from nlhf_zoo.algorithms.base import PolicyOptimizer
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds, Trajectory
from nlhf_zoo.errors import DivergenceError, OracleStoppedError, UserError
from nlhf_zoo.game import checkpointing as snapshot
from nlhf_zoo.game.compatibility import check_parts
from nlhf_zoo.game.micro_batches import MicroBatches
from nlhf_zoo.game.payoffs import PayoffEstimator, Payoffs
from nlhf_zoo.game.phases import Phases
from nlhf_zoo.game.progress import Progress
from nlhf_zoo.game.realisation import ClosedForm, Realisation
from nlhf_zoo.game.rollout import Enumerate, Rollout
from nlhf_zoo.game.scoring import score
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.ledger import FIELDS, ledgers
from nlhf_zoo.oracles.text_oracle import TextOracle
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.tabular import TabularPolicy
from nlhf_zoo.random_streams import random_stream
from nlhf_zoo.records import PLAIN, Batch, Prompts, ProximalStep, Responses

_T = TypeVar("_T")


class OnlineGame(L.LightningModule):
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
        if not (math.isfinite(beta) and beta > 0):
            raise UserError(f"beta must be a finite number above 0, but model.beta is {beta}")
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
        self.allow_stale = allow_stale
        self.max_invalid = max_invalid
        self._micro_batches = MicroBatches(micro_batches, overlap_judging)
        self._before_stop: Callable[[], None] | None = None
        self._recent: deque[tuple[int, int]] = deque(maxlen=20)  # answers, and the invalid ones
        self.strict_loading = False  # `on_load_checkpoint` sees to it that nothing is missing
        self.metrics = nn.ModuleDict()
        self.phases = Phases()
        self.progress = Progress()
        self.trajectory: Trajectory | None = None
        self.max_rounds: int | None = None
        self.max_queries: int | None = None
        self._estimator = PayoffEstimator(oracle, self._version_of, lambda: policy.players)
        self._versions: dict[str, int] = {}
        self._snapshot: dict[str, Any] = {}
        self._plan: Sequence[ProximalStep] | None = None
        self._accumulated = 0  # batches since the last gradient step
        # Lightning must not run a backward where there is none.
        self.automatic_optimization = not self.realisation.closed_form
        check_parts(policy, oracle, algorithm, beta, self.rollout, self.realisation)
        if micro_batches > 1 and self.rollout.enumerated:
            raise UserError(
                f"model.micro_batches is {micro_batches}, but responses that are listed are not "
                "drawn: leave it at 1"
            )
        policy.versions = self._versions
        policy.bind(algorithm.players, oracle.support, oracle.action_names)

    def training_step(self, prompts: Prompts, batch_idx: int) -> Tensor | None:
        """One gradient step of the current proximal step; or, in closed form, many rounds."""
        if isinstance(self.realisation, ClosedForm):
            self._play_in_closed_form(self.realisation, prompts)
            return None
        step, prompts = self.step, self.policy.encode(prompts)
        responses, payoffs = self.play_and_judge(step, prompts)
        with self.phases.phase("score"):
            loss = self.improve(step, prompts, responses, payoffs)
        self.phases.begin_update()
        return loss

    def play_and_judge(self, step: ProximalStep, prompts: Prompts) -> tuple[Responses, Payoffs]:
        """Draw responses and judge them, one micro-batch after the other.

        Raises:
            OracleStoppedError: the oracle cannot be asked any more, or answers too little.
        """
        rng = self._random_stream()
        responses, opponents, payoffs = self._unless_stopped(
            lambda: self._micro_batches(
                prompts,
                lambda part: self.rollout.play(step, self.policy, part, rng),
                partial(self.judge, step),
                self.phases,
            )
        )
        self._account(prompts, responses, opponents, payoffs)
        return responses, payoffs

    def judge(
        self,
        step: ProximalStep,
        prompts: Prompts,
        responses: Responses,
        opponents: Sequence[Responses],
    ) -> Payoffs:
        """Ask the oracle for the payoff of each response of a micro-batch.

        `play_and_judge` calls this for each part, and counts what was asked; where judging
        overlaps, in a thread of its own.

        Args:
            step: the proximal step.
            prompts: B prompts of the part.
            responses: K scored responses a prompt.
            opponents: responses of each opponent of the step; in self-play, the scored ones.
        """
        return self._estimator(step, prompts, responses, opponents)

    def improve(
        self, step: ProximalStep, prompts: Prompts, responses: Responses, payoffs: Payoffs
    ) -> Tensor:
        """The algorithm's loss, averaged over the prompts that could be judged.

        Raises:
            UserError: the responses were drawn by earlier weights, and that is not allowed.
            DivergenceError: the loss is not finite.
        """
        self._refuse_stale(step, responses)
        batch = score(self.policy, step, prompts, responses, payoffs, self.beta)
        judged = int(payoffs.valid.any(-1).sum())
        loss = self.algorithm.loss(step, batch).sum() / max(judged, 1)
        if not loss.isfinite():
            raise DivergenceError(
                f"training diverged: the loss is {loss.item()} in round {self.progress.round}, "
                "so lower the learning rate or the step size"
            )
        self._log_training(step, batch, loss)
        self._log_responses(step, responses, batch)
        return loss

    def on_after_backward(self) -> None:
        """Count the backward of each batch, also of those that only accumulate."""
        self.phases.end_update()
        self.phases.begin_update()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a gradient step, then advance the plan.

        Here, and not at the end of a batch: so accumulation and checkpoints agree with the plan.
        """
        super().optimizer_step(*args, **kwargs)  # whatever Lightning hands over
        self.phases.end_update()
        progress, step = self.progress, self.step
        self._accumulated = 0
        self._versions["policy"] = self._new_version()
        progress.gradient_step += 1
        if progress.gradient_step < step.gradient_steps:
            return
        progress.gradient_step = 0
        if step.writes != "policy":
            self.copy_("policy", step.writes)
            snapshot.put_back(self._snapshot, self.policy, self._torch_optimizer())
            self._versions["policy"] = self._snapshot["version"]
        progress.step += 1
        if progress.step < len(self.plan):
            return
        self.algorithm.end_round(self, progress.round)
        progress.step = 0
        progress.round += 1
        self._begin_round()

    # The plan and the players -------------------------------------------------------------------

    @property
    def plan(self) -> Sequence[ProximalStep]:
        """The proximal steps of this round."""
        if self._plan is None:
            self._plan = self.algorithm.steps(self.beta, self.progress.round)
        return self._plan

    @property
    def step(self) -> ProximalStep:
        """The proximal step that is being taken."""
        return self.plan[self.progress.step]

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
        return self._rounds_left() == 0 and self.between_rounds

    def set_budget(self, max_rounds: int | None, max_queries: int | None) -> None:
        """Limit the rounds, and the queries for each prompt.

        A round that would exceed the budget is not begun.
        """
        self.max_rounds = max_rounds
        self.max_queries = max_queries

    @property
    def gradient_steps_per_round(self) -> int:
        """Optimiser steps of a round; they see the same prompts. 1 in closed form."""
        return 1 if self.realisation.closed_form else sum(s.gradient_steps for s in self.plan)

    def queries_per_round(self) -> int:
        """Preference queries of a round, for each prompt, as the algorithm declares them."""
        rollout = self.rollout
        return self.algorithm.queries(
            rollout.num_responses, rollout.num_opponents, rollout.enumerated
        )

    def copy_(self, source: str, target: str) -> None:
        """Make one player equal to another (algorithms call this at the end of a round)."""
        self.policy.copy_(source, target)
        self._versions[target] = self._version_of(source)

    def lerp_(self, source: str, target: str, weight: float) -> None:
        """Move a player part of the way to another (algorithms call this at the end of a round)."""
        self.policy.lerp_(source, target, weight)
        self._versions[target] = self._version_of(source) if weight == 1 else self._new_version()

    def _version_of(self, player: str) -> int:
        return -1 if player == "reference" else self._versions.get(player, 0)

    def _new_version(self) -> int:
        return max([0, *self._versions.values()]) + 1

    def _unless_stopped(self, ask: Callable[[], _T]) -> _T:
        """What the oracle says; where it has stopped in one process, all of them end."""
        stopped = None
        try:
            said = ask()
        except OracleStoppedError as error:
            stopped = error
        (number,) = self._sum_over_processes([int(stopped is not None)])
        if number:
            self.settle_ledgers()
            self._stop(stopped or OracleStoppedError("the oracle of another process has stopped"))
        return said

    def _stop(self, error: OracleStoppedError) -> NoReturn:
        """End the run, in all processes; a checkpoint is written first, where one is wanted."""
        if self._before_stop is not None:
            self._before_stop()
        raise error

    def set_before_stop(self, do: Callable[[], None]) -> None:
        """Have something done before the run ends for want of an oracle, in all processes."""
        self._before_stop = do

    def _account(
        self,
        prompts: Prompts,
        responses: Responses,
        opponents: Sequence[Responses],
        payoffs: Payoffs,
    ) -> None:
        unjudged = len(prompts) - int(payoffs.valid.any(-1).sum())
        drawn = {id(r): r for r in (responses, *opponents) if not r.enumerated}
        tokens = sum(int(r.mask.sum()) for r in drawn.values())
        answers, invalid = len(prompts) * payoffs.answers, payoffs.invalid
        if asked := self.settle_ledgers():
            # An oracle of texts knows better: what it was asked, without what needs no question.
            answers, invalid = asked["queries"] + asked["cache_hits"], asked["invalid"]
        self._count(len(prompts), payoffs.queries, payoffs.invalid, unjudged, tokens)
        self._recent.append((answers, invalid))
        if len(self._recent) == self._recent.maxlen and (sentence := self.silence()):
            self._stop(OracleStoppedError(sentence))

    def silence(self) -> str:
        """What is wrong where the oracle left too much of the last steps unanswered; else empty."""
        answers = sum(wanted for wanted, _ in self._recent)
        invalid = sum(missing for _, missing in self._recent)
        if invalid <= self.max_invalid * answers:
            return ""
        parts = [part for part in self.oracle.modules() if isinstance(part, TextOracle)]
        last_words = "".join(f"; its last words: {p.last_error}" for p in parts if p.last_error)
        return (
            f"{type(self.oracle).__name__} had no valid answer to {invalid / answers:.0%} of what "
            f"it was asked in the last {len(self._recent)} training steps: look at it by `nlhf "
            f"oracle`, or raise model.max_invalid, which is {self.max_invalid}{last_words}"
        )

    def _refuse_stale(self, step: ProximalStep, responses: Responses) -> None:
        now = self.policy.stamp(step.sampler)
        if responses.version != now and not responses.enumerated and not self.allow_stale:
            raise UserError(
                f"the responses were drawn by version {responses.version} of the weights, but "
                f"these are at version {now}: draw anew, or set model.allow_stale to true"
            )

    def _rounds_left(self) -> int | None:
        left = [] if self.max_rounds is None else [self.max_rounds - self.progress.round]
        if self.max_queries is not None:
            queries = self.max_queries - self.progress.queries_per_prompt
            left.append(queries // self.queries_per_round())
        return max(0, min(left)) if left else None

    def _begin_round(self) -> None:
        self._plan = None
        if any(step.writes != "policy" for step in self.plan):
            start = snapshot.take(self.policy, self._torch_optimizer())
            self._snapshot = {**start, "version": self._version_of("policy")}

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError("the game trains with one optimiser: give model.optimizer one class")
        return optimizer

    # Closed form, counting, drawing -------------------------------------------------------------

    def _play_in_closed_form(self, realisation: ClosedForm, prompts: Prompts) -> None:
        policy, table, progress = self.policy, self.oracle.table, self.progress
        assert isinstance(policy, TabularPolicy)  # `check_parts` has made sure of both
        assert table is not None
        if len(prompts) != len(policy.log_reference):
            raise UserError(
                "the closed form plays all prompts at once: set data.batch_size to null"
            )
        logits = policy.logits()
        engine = ClosedFormRounds(
            self.algorithm,
            self.beta,
            table.to(policy.log_reference),
            policy.log_reference,
            logits,
            self._estimator.products,
            from_start=progress.round == 0,
        )
        rounds, left = realisation.rounds(*policy.log_reference.shape), self._rounds_left()
        played = engine.run(progress.round, rounds if left is None else min(rounds, left))
        if not played.log_policy[-1].exp().sum(-1).isfinite().all():
            raise DivergenceError(
                f"the closed form diverged before round {progress.round + len(played.queries)}: "
                "lower the algorithm's step size"
            )
        self.trajectory = replace(played, queries=played.queries + progress.queries_per_prompt)
        self._count(len(prompts), int(played.queries[-1]))
        self._estimator.products = engine.products()
        with torch.no_grad():
            for player, new in engine.logits().items():
                logits[player].copy_(new)
        progress.round += len(played.queries)
        progress.batches += 1
        self._accumulated = 0
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step()  # no gradients, so nothing moves: Lightning counts training steps by it

    def _count(
        self, prompts: int, queries: int, invalid: int = 0, unjudged: int = 0, tokens: int = 0
    ) -> None:
        asked, invalid, unjudged, tokens = self._sum_over_processes(
            [prompts * queries, invalid, unjudged, tokens]
        )
        self.progress.queries += asked
        self.progress.invalid += invalid
        self.progress.unjudged += unjudged
        self.progress.tokens += tokens
        if not self._accumulated:  # batches that accumulate to one step have different prompts
            self.progress.queries_per_prompt += queries
        self._accumulated += 1

    def _sum_over_processes(self, numbers: Sequence[int]) -> list[int]:
        """Sums of numbers that each process has."""
        if self._trainer is None or self.trainer.world_size == 1:
            return [*numbers]
        total = self.trainer.strategy.reduce(
            torch.tensor(numbers, dtype=torch.long, device=self.device), reduce_op="sum"
        )
        return [int(number) for number in total]

    def settle_ledgers(self) -> dict[str, int]:
        """Add up what the oracle was really asked in all processes; each of them calls this.

        Returns:
            what it was asked since the last time; empty where it keeps no ledger.
        """
        kept = ledgers(self.oracle).values()
        if not kept:
            return {}
        counts = [ledger.here[field] for ledger in kept for field in FIELDS]
        total = iter(self._sum_over_processes(counts))
        asked = dict.fromkeys(FIELDS, 0)
        for ledger in kept:
            of_all = {field: next(total) for field in FIELDS}
            ledger.settle(of_all)
            asked = {field: asked[field] + of_all[field] for field in FIELDS}
        return asked

    def _random_stream(self) -> torch.Generator:
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # left there by seed_everything
        rng = random_stream(seed, self.global_rank, self.progress.batches, self.device)
        self.progress.batches += 1
        return rng

    def _log_training(self, step: ProximalStep, batch: Batch, loss: Tensor) -> None:
        if self._trainer is None:
            return
        self.log("train/loss", loss.detach(), prog_bar=True)
        if dict(step.sampler) == {"policy": 1.0} and step.scored.is_plain:
            ratio = batch.log_prob.detach() - batch.reference_log_prob
            ratio = torch.where(batch.weight > 0, ratio, torch.zeros_like(ratio))
            self.log("train/kl", (batch.weight * ratio).sum(-1).mean())

    def _log_responses(self, step: ProximalStep, responses: Responses, batch: Batch) -> None:
        """What is particular to responses of several tokens."""
        if self._trainer is None or responses.enumerated or responses.log_prob is None:
            return
        self.log("rollout/length", responses.mask.sum(-1).float().mean())
        if responses.truncated is not None:
            self.log("rollout/truncated", responses.truncated.float().mean())
        if dict(step.sampler) == {"policy": 1.0}:
            # The loss takes what was computed again; a gap says that the generator drew from
            # another distribution than the one that is trained.
            gap = (batch.log_prob.detach() - responses.log_prob).abs().max()
            self.log("rollout/log_prob_gap", gap)

    # Lightning ----------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The optimiser of the policy's trained parameters, and its schedule."""
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        if self.realisation.closed_form:
            return torch.optim.SGD(parameters, lr=0.0)
        optimizer = self.optimizer(parameters)
        if self.lr_scheduler is None:
            return optimizer
        schedule = {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_start(self) -> None:
        """Begin the first round, unless one is being resumed.

        Raises:
            UserError: several processes would play the same closed form.
        """
        if not self.realisation.closed_form:
            if self.between_rounds or not self._snapshot:
                self._begin_round()  # also in a second fit, whose optimiser is a new one
        elif self.trainer.world_size > 1:
            raise UserError("the closed form runs in one process: set trainer.devices to 1")

    def validation_step(self, prompts: Prompts, batch_idx: int) -> None:
        """Log the win rate against the reference."""
        rng = random_stream(0, self.global_rank, -1, self.device)
        players = []
        for player, num in [
            ("policy", self.rollout.num_responses),
            ("reference", self.rollout.num_opponents),
        ]:
            players.append(
                self.rollout.responses(self.policy, {player: 1.0}, prompts, num, PLAIN, rng)
            )
        payoff, valid = self.oracle.expected(prompts, *players)
        weight = players[0].weight * valid
        win_rate = ((weight * payoff).sum(-1) / weight.sum(-1)).nanmean()
        self.log("win_rate/vs_reference", win_rate, batch_size=len(prompts), sync_dist=True)

    def test_step(self, prompts: Prompts, batch_idx: int) -> None:
        """As ``validation_step``."""
        self.validation_step(prompts, batch_idx)

    def predict_step(self, prompts: Prompts, batch_idx: int) -> Tensor:
        """Log-probabilities of all responses [B, N]."""
        return self._log_prob_of_all("policy", prompts)

    def log_policy(self, player: str = "policy") -> Tensor:
        """Log-probabilities of all responses to all prompts of a table, without gradient [C, N].

        Args:
            player: whose.

        Raises:
            UserError: the responses cannot be listed.
        """
        prompts = self.oracle.prompts
        if prompts is None:
            raise UserError("this game has no table of responses: exact metrics need one")
        return self._log_prob_of_all(player, prompts.to(self.device))

    @torch.no_grad()
    def _log_prob_of_all(self, player: str, prompts: Prompts) -> Tensor:
        responses = self.policy.enumerate(prompts)
        if responses is None:
            kind = type(self.policy).__name__
            raise UserError(f"{kind} cannot list its responses: exact figures need them all")
        return self.policy.log_prob({player: 1.0}, prompts, responses)

    def on_validation_epoch_end(self) -> None:
        """What was asked for validation is counted too."""
        self.settle_ledgers()

    def position(self) -> dict[str, Any]:
        """Where the game stands, weights apart: progress, and what the oracle keeps in its state.

        For `rewind`. A training step that fails has moved nothing else.
        """
        frozen = {name for name, p in self.oracle.named_parameters() if not p.requires_grad}
        state = self.oracle.state_dict()
        kept = {name: state[name].clone() for name in state if name not in frozen}
        return {"progress": asdict(self.progress), "oracle": kept}

    @torch.no_grad()
    def rewind(self, position: dict[str, Any]) -> None:
        """Go back to a position between two optimiser steps, so that what failed is tried anew.

        What the oracle was asked stays counted in its ledgers.
        """
        self.progress = Progress(**position["progress"])
        state = self.oracle.state_dict()
        for name, value in position["oracle"].items():
            state[name].copy_(value)
        self._accumulated = 0

    def add_metric(self, name: str, metric: Metric) -> None:
        """Register a metric, so that it moves with the game (callbacks call this)."""
        self.metrics[name] = metric

    def _kept_names(self) -> set[str]:
        """Names in ``state_dict`` that a checkpoint holds."""
        policy = {f"policy.{name}" for name in self.policy.kept_names()}
        frozen = {f"oracle.{n}" for n, p in self.oracle.named_parameters() if not p.requires_grad}
        rest = {name for name in self.state_dict() if not name.startswith("policy.")}
        return policy | (rest - frozen)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hold what trains, and what Lightning does not know of: position, versions, products.

        Weights that are loaded from files again, a base model's or an oracle's, are left out.
        """
        kept = self._kept_names()
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in kept}
        checkpoint["online_game"] = {
            "progress": asdict(self.progress),
            "versions": dict(self._versions),
            "snapshot": self._snapshot,
            "products": dict(self._estimator.products),
            "ledgers": {name: ledger.counts() for name, ledger in ledgers(self.oracle).items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            UserError: the checkpoint is of another module.
        """
        if "online_game" not in checkpoint:
            raise UserError(
                "the checkpoint holds no online game: give one that `nlhf fit` has written"
            )
        missing = sorted(self._kept_names() - checkpoint["state_dict"].keys())
        if missing:  # loading is not strict, for the sake of the weights that were left out
            raise UserError(
                f"the checkpoint does not fit the model: it lacks {len(missing)} of its "
                f"parameters, {missing[0]} among them"
            )
        state = checkpoint["online_game"]
        self.progress = Progress(**state["progress"])
        self._versions.clear()  # the policy reads this very dictionary
        self._versions.update(state["versions"])
        self._snapshot = state["snapshot"]
        self._estimator.products = dict(state["products"])
        for name, ledger in ledgers(self.oracle).items():
            ledger.restore(state.get("ledgers", {}).get(name, {}))
        self._plan = None
