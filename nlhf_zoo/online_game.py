"""The online game: play, judge, improve."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torchmetrics import Metric

from nlhf_zoo.algorithms.base import PolicyOptimizer
from nlhf_zoo.closed_form import ClosedFormRounds, Trajectory
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.tabular import TabularPolicy
from nlhf_zoo.realisation import ClosedForm, GradientSteps, Realisation
from nlhf_zoo.records import Batch, Mixture, Prompts, ProximalStep, Responses
from nlhf_zoo.rollout import Enumerate, Rollout, random_stream


@dataclass(slots=True)
class Progress:
    """Where the game stands; all of it survives a resume.

    Args:
        round: rounds that are finished.
        step: proximal steps that are finished in this round.
        gradient_step: gradient steps that are finished in this proximal step.
        batches: training steps that this process has played.
        queries: preference queries of all processes.
        queries_per_prompt: preference queries for each prompt of a batch, as algorithms are compared by.
        invalid: answers of the oracle that could not be had.
        unjudged: prompts that left the loss because none of their answers was valid.
    """

    round: int = 0
    step: int = 0
    gradient_step: int = 0
    batches: int = 0
    queries: int = 0
    queries_per_prompt: int = 0
    invalid: int = 0
    unjudged: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the oracle's answers say about the scored responses.

    Args:
        payoff: q [B, K], estimates of sum_j a_j (P o_j)(y_k).
        valid: bool [B, K].
        preference: P(y_k > y_k') [B, K, K] where responses were compared with each other.
        pair_valid: bool [B, K, K], likewise.
    """

    payoff: Tensor
    valid: Tensor
    preference: Tensor | None = None
    pair_valid: Tensor | None = None


class OnlineGame(L.LightningModule):
    """The online game between a policy and itself, judged by a preference oracle.

    Args:
        policy: who plays.
        oracle: who judges.
        algorithm: how the policy improves.
        beta: temperature of the KL regularisation to the reference.
        optimizer: for gradient steps; called on the policy's trained parameters.
        lr_scheduler: for gradient steps; stepped with the optimiser.
        rollout: which responses enter a step; all of them by default.
        realisation: how a proximal step is made; in closed form by default.

    Raises:
        UserError: the parts do not fit each other.
    """

    def __init__(
        self,
        policy: Policy,
        oracle: PreferenceOracle,
        algorithm: PolicyOptimizer,
        beta: float = 0.1,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        rollout: Rollout | None = None,
        realisation: Realisation | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(beta) and beta > 0):
            raise UserError(f"beta must be a finite number above 0, but model.beta is {beta}")
        self.policy = policy
        self.oracle = oracle
        self.algorithm = algorithm
        self.beta = beta
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.rollout = rollout or Enumerate()
        self.realisation = realisation or ClosedForm()
        self.metrics = nn.ModuleDict()
        self.progress = Progress()
        self.trajectory: Trajectory | None = None
        self.max_rounds: int | None = None
        self.max_queries: int | None = None
        self._snapshot: dict[str, Any] = {}
        self._products: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._plan: Sequence[ProximalStep] | None = None
        self._accumulated = 0  # batches since the last gradient step
        # Lightning must not run a backward where there is none.
        self.automatic_optimization = not self.realisation.closed_form
        policy.bind(algorithm.players, oracle.support)
        self._check_parts()

    # ---- the loop ----------------------------------------------------------------------------------------

    def training_step(self, prompts: Prompts, batch_idx: int) -> Tensor | None:
        """One gradient step of the current proximal step; or, in closed form, many rounds."""
        if isinstance(self.realisation, ClosedForm):
            return self._play_in_closed_form(self.realisation, prompts)
        step = self.step
        responses, opponents = self.rollout.play(step, self.policy, prompts, self._random_stream())
        verdict = self.judge(step, prompts, responses, opponents)
        self._accumulated += 1
        return self.improve(step, prompts, responses, verdict)

    @torch.no_grad()
    def judge(
        self, step: ProximalStep, prompts: Prompts, responses: Responses, opponents: Sequence[Responses]
    ) -> Verdict:
        """Ask the oracle for the payoff of each response, and count the queries."""
        if not step.pairs and (self.rollout.enumerated or not step.self_play):
            payoff, valid = self._payoff(step, prompts, responses, opponents)
            return Verdict(payoff, valid)
        comparison = self.oracle(prompts, responses, responses)
        itself = torch.eye(responses.num, dtype=torch.bool, device=comparison.valid.device)
        preference = comparison.preference.to(responses.weight.dtype)
        preference = preference.masked_fill(itself | ~comparison.valid, 0.5)
        valid = comparison.valid | itself
        distinct = 1 if self.rollout.enumerated else responses.num * (responses.num - 1) // 2
        self._count_queries(len(prompts), distinct, int((~valid).sum()) // 2)
        others = valid & ~itself
        answered = others.any(-1)
        if self.rollout.enumerated:
            weight = responses.weight[:, None, :] * valid
            payoff = (weight * preference).sum(-1) / weight.sum(-1)
        else:
            # All pairs weigh the same, also where some are invalid: averaging each response over its own valid
            # opponents and itself would shrink q - 1/2, and so solve the game at a larger beta.
            share = (answered.sum(-1) - 1) / others.sum((-2, -1)).clamp(min=1)
            payoff = 0.5 + share[:, None].to(preference) * (others * (preference - 0.5)).sum(-1)
        return Verdict(payoff, answered, preference, valid)

    def improve(self, step: ProximalStep, prompts: Prompts, responses: Responses, verdict: Verdict) -> Tensor:
        """The algorithm's loss, averaged over the prompts that could be judged."""
        log_prob = self.policy.log_prob({"policy": 1.0}, prompts, responses)
        log_probs = {"policy": log_prob.detach()}
        with torch.no_grad():
            for player in {*step.centre, step.reference} - {"policy"}:
                log_probs[player] = self.policy.log_prob({player: 1.0}, prompts, responses)
            weight = responses.weight * verdict.valid
            total = weight.sum(-1, keepdim=True)
            weight = torch.where(total > 0, weight / total.clamp(min=1e-300 if weight.dtype == torch.float64 else 1e-30), weight)
            pair_weight = None
            if verdict.pair_valid is not None and step.pairs:
                pair_weight = responses.pair_weight() * verdict.pair_valid
                pair_weight = pair_weight / pair_weight.sum((-2, -1), keepdim=True).clamp(min=1e-30)
            centre = sum(
                (w * log_probs[player] for player, w in step.centre.items() if w), torch.zeros_like(log_prob)
            )
        batch = Batch(
            log_prob=log_prob,
            centre_log_prob=centre,
            reference_log_prob=log_probs[step.reference],
            payoff=verdict.payoff,
            weight=weight,
            beta=self.beta,
            enumerated=self.rollout.enumerated,
            self_play=step.self_play and not self.rollout.enumerated,
            preference=verdict.preference,
            pair_weight=pair_weight,
        )
        judged = (total[:, 0] > 0).sum()
        self.progress.unjudged += len(prompts) - int(judged)
        loss = self.algorithm.loss(step, batch).sum() / judged.clamp(min=1)
        self._log_training(step, batch, loss)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:  # Lightning's own signature, passed on
        """Take a gradient step, then advance the plan: here, so that accumulation and checkpoints agree with it."""
        super().optimizer_step(*args, **kwargs)
        progress, step = self.progress, self.step
        self._accumulated = 0
        self._versions["policy"] = max(self._versions.values(), default=0) + 1
        progress.gradient_step += 1
        if progress.gradient_step < step.gradient_steps:
            return
        progress.gradient_step = 0
        if step.writes != "policy":
            self.copy_("policy", step.writes)
            self._restore()
        progress.step += 1
        if progress.step < len(self.plan):
            return
        self.algorithm.end_round(self, progress.round)
        progress.step = 0
        progress.round += 1
        self._begin_round()

    # ---- the plan ----------------------------------------------------------------------------------------

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
    def finished(self) -> bool:
        """Whether another round would exceed the budget."""
        return self._rounds_left() == 0 and self.progress.step == self.progress.gradient_step == 0

    def set_budget(self, max_rounds: int | None, max_queries: int | None) -> None:
        """Limit the rounds, and the queries for each prompt; a round that would exceed them is not begun."""
        self.max_rounds = max_rounds
        self.max_queries = max_queries

    def queries_per_round(self) -> int:
        """Preference queries of a round, for each prompt, as the algorithm declares them."""
        rollout = self.rollout
        return self.algorithm.queries(rollout.num_responses, rollout.num_opponents, rollout.enumerated)

    def copy_(self, source: str, target: str) -> None:
        """Move a player at the end of a round (algorithms call this)."""
        self.policy.copy_(source, target)
        self._versions[target] = self._versions.get(source, 0)

    def lerp_(self, source: str, target: str, weight: float) -> None:
        """Move a player part of the way (algorithms call this)."""
        self.policy.lerp_(source, target, weight)
        whole = weight == 1
        self._versions[target] = self._versions.get(source, 0) if whole else max(self._versions.values(), default=0) + 1

    def _rounds_left(self) -> int | None:
        left = [] if self.max_rounds is None else [self.max_rounds - self.progress.round]
        if self.max_queries is not None:
            left.append((self.max_queries - self.progress.queries_per_prompt) // self.queries_per_round())
        return max(0, min(left)) if left else None

    def _begin_round(self) -> None:
        self._plan = None
        if any(step.writes != "policy" for step in self.plan):
            optimizer = self._torch_optimizer()
            state = {
                index: {k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state[p].items()}
                for index, p in enumerate(_parameters(optimizer))
                if p in optimizer.state
            }
            version = self._versions.get("policy", 0)
            self._snapshot = {"policy": self.policy.snapshot(), "optimizer": state, "version": version}

    def _restore(self) -> None:
        """Put the policy and the optimiser's state back to the round's start.

        Not the optimiser's param_groups: these hold the learning rate, which the scheduler has moved.
        """
        optimizer = self._torch_optimizer()
        self.policy.restore(self._snapshot["policy"])
        self._versions["policy"] = self._snapshot["version"]
        parameters = _parameters(optimizer)
        optimizer.state.clear()
        for index, state in self._snapshot["optimizer"].items():
            optimizer.state[parameters[index]] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError("the game trains with one optimiser: give model.optimizer one class")
        return optimizer

    # ---- playing and asking ------------------------------------------------------------------------------

    def _play_in_closed_form(self, realisation: ClosedForm, prompts: Prompts) -> None:
        policy = self.policy
        table = self.oracle.table
        if not isinstance(policy, TabularPolicy) or table is None:  # checked before the fit; said to the type checker
            raise UserError("the closed form needs a TabularPolicy and an oracle that holds its table")
        if len(prompts) != len(policy.log_reference):
            raise UserError("the closed form plays all prompts at once: leave data.batch_size at null")
        table = table.to(policy.log_reference)
        logits = policy.logits()
        engine = ClosedFormRounds(
            self.algorithm, self.beta, table, policy.log_reference, logits, self._products, self.progress.round == 0
        )
        rounds = realisation.rounds(*policy.log_reference.shape)
        left = self._rounds_left()
        trajectory = engine.run(self.progress.round, rounds if left is None else min(rounds, left))
        asked = int(trajectory.queries[-1])
        self.trajectory = replace(trajectory, queries=trajectory.queries + self.progress.queries_per_prompt)
        self._count_queries(len(prompts), asked)
        self._products = engine.products()
        with torch.no_grad():
            for player, new in engine.logits().items():
                logits[player].copy_(new)
        self.progress.round += len(trajectory.queries)
        self.progress.batches += 1
        optimizer = self.optimizers()
        if isinstance(optimizer, LightningOptimizer):
            optimizer.step()  # has no gradients and moves nothing: Lightning counts training steps by it

    def _payoff(
        self, step: ProximalStep, prompts: Prompts, responses: Responses, opponents: Sequence[Responses]
    ) -> tuple[Tensor, Tensor]:
        """sum_j a_j (P o_j)(y_k) and its validity, [B, K] both."""
        payoff, valid = torch.zeros_like(responses.weight), torch.ones_like(responses.weight, dtype=torch.bool)
        kept = {}
        for (coefficient, mixture), opponent in zip(step.payoff, opponents, strict=True):
            key = self._product_key(mixture, prompts)
            known = self._products | kept  # players that are still equal share a product within a step, too
            if self.rollout.enumerated and key in known:
                product = known[key]
            elif self.rollout.enumerated:
                product, answered = self.oracle.expected(prompts, responses, opponent)
                self._count_queries(len(prompts), 1, int((~answered).sum()))
                valid &= answered
            else:
                comparison = self.oracle(prompts, responses, opponent)
                product, answered = comparison.average(opponent.weight)
                self._count_queries(len(prompts), responses.num * opponent.num, int((~comparison.valid).sum()))
                valid &= answered
            if self.rollout.enumerated and bool(valid.all()):
                kept[key] = product
            payoff += coefficient * product
        self._products = kept
        return payoff, valid

    def _product_key(self, mixture: Mixture, prompts: Prompts) -> str:
        """Names a product by the versions of its players: one that was asked for once is remembered for a step."""
        players = sorted((self._versions.get(p, 0) if p != "reference" else -1, w) for p, w in mixture.items() if w)
        return f"{players} {prompts.ids.tolist()}"

    def _count_queries(self, prompts: int, per_prompt: int, invalid: int = 0) -> None:
        asked, unanswered = prompts * per_prompt, invalid
        if self._trainer is not None and self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(torch.tensor([asked, invalid], device=self.device), reduce_op="sum")
            asked, unanswered = (int(x) for x in total)
        self.progress.queries += asked
        if not self._accumulated:  # batches that accumulate to one gradient step have different prompts
            self.progress.queries_per_prompt += per_prompt
        self.progress.invalid += unanswered

    def _random_stream(self) -> torch.Generator:
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # seed_everything leaves the run's seed there
        stream = random_stream(seed, self.global_rank, self.progress.batches, self.device)
        self.progress.batches += 1
        return stream

    def _log_training(self, step: ProximalStep, batch: Batch, loss: Tensor) -> None:
        if self._trainer is None:
            return
        self.log("train/loss", loss.detach(), prog_bar=True)
        if dict(step.sampler) == {"policy": 1.0} and step.scored.is_plain:
            ratio = torch.where(batch.weight > 0, batch.log_prob - batch.reference_log_prob, 0.0)
            self.log("train/kl", (batch.weight * ratio.detach()).sum(-1).mean())

    # ---- Lightning ---------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The optimiser of the policy's trained parameters, and its schedule."""
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        if self.realisation.closed_form:
            return torch.optim.SGD(parameters, lr=0.0)
        optimizer = self.optimizer(parameters)
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Begin the first round, unless one is being resumed.

        Raises:
            UserError: several processes would play the same closed form.
        """
        if self.realisation.closed_form:
            if self.trainer.world_size > 1:
                raise UserError("the closed form runs in one process: set trainer.devices to 1")
        elif not self._snapshot:
            self._begin_round()

    def validation_step(self, prompts: Prompts, batch_idx: int) -> None:
        """Log the win rate against the reference and update the metrics that callbacks have added."""
        self._evaluate(prompts)

    def test_step(self, prompts: Prompts, batch_idx: int) -> None:
        """As ``validation_step``."""
        self._evaluate(prompts)

    def predict_step(self, prompts: Prompts, batch_idx: int) -> Tensor:
        """Log-probabilities of all responses [B, N]."""
        responses = Enumerate().responses(self.policy, {"policy": 1.0}, prompts)
        return self.policy.log_prob({"policy": 1.0}, prompts, responses)

    def _evaluate(self, prompts: Prompts) -> None:
        stream = random_stream(0, self.global_rank, -1, self.device)
        first = self.rollout.responses(
            self.policy, {"policy": 1.0}, prompts, max(self.rollout.num_responses, 1), self.step.scored, stream
        )
        second = self.rollout.responses(
            self.policy, {"reference": 1.0}, prompts, max(self.rollout.num_opponents, 1), self.step.opponent, stream
        )
        payoff, valid = self.oracle.expected(prompts, first, second)
        weight = first.weight * valid
        win_rate = (weight * payoff).sum(-1) / weight.sum(-1)
        self.log("win_rate/vs_reference", win_rate.nanmean(), batch_size=len(prompts), sync_dist=True)

    def add_metric(self, name: str, metric: Metric) -> None:
        """Register a metric, so that it moves and is checkpointed with the game (callbacks call this)."""
        self.metrics[name] = metric

    def log_policy(self, player: str = "policy") -> Tensor:
        """Log-probabilities of all responses to all prompts of a table, without gradient [C, N].

        Args:
            player: whose.

        Raises:
            UserError: the responses cannot be listed.
        """
        support = self.oracle.support
        if support is None:
            raise UserError("this game has no table of responses: exact metrics need one")
        prompts = Prompts(torch.arange(len(support), device=self.device))
        responses = self.policy.enumerate(prompts)
        if responses is None:
            raise UserError(f"{type(self.policy).__name__} cannot list its responses: exact metrics need them")
        with torch.no_grad():
            return self.policy.log_prob({player: 1.0}, prompts, responses)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know of: position, players' versions, snapshot, remembered products."""
        checkpoint["online_game"] = {
            "progress": asdict(self.progress),
            "versions": dict(self._versions),
            "snapshot": self._snapshot,
            "products": dict(self._products),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            UserError: the checkpoint is of another module.
        """
        if "online_game" not in checkpoint:
            raise UserError("the checkpoint holds no online game: give one that `nlhf fit` has written")
        state = checkpoint["online_game"]
        self.progress = Progress(**state["progress"])
        self._versions = dict(state["versions"])
        self._snapshot = state["snapshot"]
        self._products = dict(state["products"])
        self._plan = None

    def _check_parts(self) -> None:
        name = type(self.algorithm).__name__
        steps = self.algorithm.steps(self.beta, 0)
        if isinstance(self.realisation, GradientSteps):
            needs_pairs = not self.rollout.enumerated and any(s.self_play or s.pairs for s in steps)
            if needs_pairs and self.rollout.num_responses < 2:
                raise UserError(f"{name} compares responses with each other: set model.rollout.num_responses to 2 or more")
            return
        if not self.algorithm.closed_form:
            raise UserError(f"{name} has no closed form: set model.realisation to GradientSteps")
        if not isinstance(self.policy, TabularPolicy):
            raise UserError(
                f"the closed form needs a TabularPolicy, not {type(self.policy).__name__}: "
                "set model.realisation to GradientSteps"
            )
        if not self.oracle.answers_table:
            raise UserError(
                "the closed form needs an oracle that answers from a table in memory, and "
                f"{type(self.oracle).__name__} does not: set model.realisation to GradientSteps"
            )
        if not self.rollout.enumerated:
            raise UserError("the closed form has no samples: set model.rollout to Enumerate, or model.realisation to GradientSteps")


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
