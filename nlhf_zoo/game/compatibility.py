"""Which parts of a game fit each other; refused in one sentence before anything runs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from nlhf_zoo.algorithms.base import PolicyOptimizer
from nlhf_zoo.algorithms.scaling import scaled_steps
from nlhf_zoo.errors import UserError
from nlhf_zoo.game import designs
from nlhf_zoo.game.ahead import refuse_asking_ahead
from nlhf_zoo.game.rollout import Rollout
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.finite import TabularPolicy
from nlhf_zoo.records import GREEDY, PLAIN, Batch, ProximalStep
from nlhf_zoo.solvers.validation import LEAST_BETA

if TYPE_CHECKING:
    from nlhf_zoo.game.online_game import OnlineGame


def check_parts(game: OnlineGame, micro_batches: int) -> None:
    """Check that the algorithm's steps can be realised with a game's parts, before it is bound."""
    _check_beta(game.beta)
    oracle, algorithm, beta = game.oracle, game.algorithm, game.beta
    rollout, name = game.rollout, type(algorithm).__name__
    try:
        steps = plan_of(game, 0)
    except ValueError as error:  # its numbers do not fit the game's beta
        raise UserError(f"{name} at beta = {beta}: {error}") from error
    players = {"policy", "reference", *algorithm.players}
    _check_plan(name, steps, players)
    steps = _drawn(name, steps, rollout, players)
    _check_scores(algorithm, oracle)
    if rollout.enumerated and oracle.support is None:
        raise UserError(
            f"{type(oracle).__name__} lists no responses that could be enumerated: set "
            "model.rollout to Sample"
        )
    if micro_batches > 1 and rollout.enumerated:
        raise UserError(
            f"model.micro_batches is {micro_batches}, but responses that are listed are not "
            "drawn: leave it at 1"
        )
    if game.realisation.closed_form:
        _check_closed_form(game)
        return
    if algorithm.adaptive:
        raise UserError(
            f'{name} with eta "adaptive" needs exact products, and is played in closed form alone: '
            "set model.realisation to ClosedForm on a table, or give model.algorithm.eta a number "
            "or null"
        )
    among_themselves = any(step.self_play or step.pairs for step in steps)
    if among_themselves and not rollout.enumerated and rollout.num_responses < 2:
        raise UserError(
            f"{name} compares responses with each other: "
            "set model.rollout.num_responses to 2 or more"
        )
    _check_drawing(game)
    _check_reuse(algorithm, steps, rollout, game.policy)
    _check_design(game, steps)
    refuse_asking_ahead(game)
    _check_ahead(game, steps)
    _check_replay(game, steps)
    _check_counting(algorithm, rollout)
    for step in steps:
        _try_loss(algorithm, step, beta, rollout, oracle.payoff_bound)


def plan_of(game: OnlineGame, round: int) -> Sequence[ProximalStep]:
    """The plan of a round, with steps in the range of the oracle's payoffs."""
    return scaled_steps(game.algorithm, game.beta, round, game.oracle.payoff_bound)


def _check_scores(algorithm: PolicyOptimizer, oracle: PreferenceOracle) -> None:
    """Refuse an oracle without scores where a step is taken by these."""
    if algorithm.by_score and not oracle.has_scores:
        raise UserError(
            f"{type(algorithm).__name__} takes scores of single responses, and "
            f"{type(oracle).__name__} gives none: set "
            "model.oracle to one that does (BradleyTerry, SmallLanguage with cycle 0, "
            "RewardModelOracle, a RuleOracle of a rule with scores), or choose an algorithm that "
            "takes preferences, as SPPO"
        )


def _check_drawing(game: OnlineGame) -> None:
    """Refuse what the policy's engine does not draw.

    A mixture may be one player alone in the first round, as under the schedule of Nash-MD.
    """
    if game.rollout.enumerated:
        return
    for number in range(3):
        for step in game.rollout.plan(plan_of(game, number)):
            for how in (step.scored, *([GREEDY] if step.greedy else [])):
                game.policy.refuse_drawing(step.sampler, how)
            for _, opponent in [] if step.among_themselves else step.payoff:
                game.policy.refuse_drawing(opponent, step.opponent)
            if step.explored is not None:
                game.policy.refuse_drawing(step.explored, PLAIN)


def _drawn(
    name: str, steps: Sequence[ProximalStep], rollout: Rollout, players: set[str]
) -> list[ProximalStep]:
    """The steps on the responses that a rollout draws; refuse a sampler that it cannot have."""
    if unknown := sorted({*(rollout.sampler or ())} - players):
        raise UserError(
            f"model.rollout.sampler names the player {unknown[0]!r:.40}, but {name} has "
            f"{', '.join(sorted(players))}"
        )
    try:
        drawn = rollout.plan(steps)
    except ValueError as error:
        raise UserError(
            f"{name} does not go with model.rollout's sampler or greedy: {error}"
        ) from error
    if any(step.reweighted for step in steps) and any(
        one.self_play and not other.self_play for one, other in zip(steps, drawn, strict=True)
    ):
        raise UserError(
            f"{name}.reweighted weighs the answers among the opponent's own responses: leave "
            "model.rollout.sampler at null and greedy at false, or set reweighted to false"
        )
    return drawn


def _check_reuse(
    algorithm: PolicyOptimizer, steps: Sequence[ProximalStep], rollout: Rollout, policy: Policy
) -> None:
    """Refuse a rollout that would serve several gradient steps, where these would take another."""
    name, reused = type(algorithm).__name__, rollout.epochs is not None
    if not reused:
        if any(step.reweighted for step in steps) and not rollout.enumerated:
            raise UserError(
                f"{name}.reweighted takes a step's answers once more: set model.rollout.epochs, so "
                "that they are held"
            )
        return
    if (most := max(step.gradient_steps for step in steps)) > 1:
        raise UserError(
            f"{name} takes {most} gradient steps on fresh rollouts, and model.rollout.epochs "
            "passes over one that is held: leave model.algorithm.inner_steps at 1"
        )
    reweighted = any(step.reweighted for step in steps)
    if reweighted and not all(step.opponent.is_whole for step in steps):
        raise UserError(
            f"{name}.reweighted weighs responses by lookahead / sampler, and what top_k, top_p or "
            "min_p leave out has no such weight: draw whole responses, or set reweighted to false"
        )
    if getattr(policy, "length_normalised", False) and (reweighted or algorithm.reuse == "ratio"):
        raise UserError(
            f"{name} takes importance ratios, and log-probabilities normalised by length "
            "give none: set model.policy.length_normalised to false, or choose a regression that "
            "is not reweighted"
        )
    if algorithm.reuse == "fresh":
        raise UserError(
            f"the loss of {name} needs a fresh rollout for each gradient step, for on a rollout "
            "that is passed over it does not take the proximal step: leave model.rollout.epochs at "
            "null, or set model.algorithm.surrogate to "
            "nlhf_zoo.algorithms.surrogates.proximal_regression"
        )


def _check_design(game: OnlineGame, steps: Sequence[ProximalStep]) -> None:
    """Refuse a comparison design that a step, or somebody else's method, cannot have."""
    rollout, name = game.rollout, type(game.algorithm).__name__
    if rollout.enumerated or designs.degree_of(rollout.pairs) is None:
        return
    if any(step.by_score for step in steps):
        raise UserError(
            f"{name} takes scores of single responses, and model.rollout.pairs {rollout.pairs} "
            "says which pairs are compared: set it to all"
        )
    if any(step.reweighted for step in steps):
        raise UserError(
            f"{name}.reweighted weighs all pairs anew, and model.rollout.pairs {rollout.pairs} "
            "asks about some of them: set it to all, or reweighted to false"
        )
    try:
        for step in steps:
            if step.among_themselves:
                designs.check_among_themselves(rollout.pairs, rollout.num_responses)
            else:
                designs.check_with_opponents(rollout.pairs, rollout.num_opponents)
    except ValueError as error:
        raise UserError(f"model.rollout does not fit {name}: {error}") from error
    if not _takes(game.judge, *[None] * 5):
        raise UserError(
            f"{type(game).__name__}.judge does not take `asked`, which says what pairs "
            f"{rollout.pairs} asks about: add this argument, or set model.rollout.pairs to all"
        )


def _check_ahead(game: OnlineGame, steps: Sequence[ProximalStep]) -> None:
    """Refuse to draw the next rollout ahead where a step cannot take it, or nobody can draw it."""
    rollout, policy, name = game.rollout, game.policy, type(game.algorithm).__name__
    if not rollout.ahead:
        return
    (step, *others) = steps
    opponents = [opponent for _, opponent in step.payoff]
    alone = len(opponents) == 1 == len(opponents[0])
    alone = alone and step.explored is None and step.scored.is_plain
    if others or not step.among_themselves or not alone:
        raise UserError(
            f"model.rollout.ahead draws for one proximal step a round in self-play, of whole "
            f"responses, as SPPO, OnlineIPO and OnlineDPO take it, and {name} takes another: set "
            "ahead to false"
        )
    if game.algorithm.reuse != "any":
        raise UserError(
            f"model.rollout.ahead has the policy one rollout ago draw, and the loss of {name} does "
            "not learn from that: set model.algorithm.surrogate to "
            "nlhf_zoo.algorithms.surrogates.proximal_regression, or ahead to false"
        )
    if designs.degree_of(rollout.pairs) is not None or getattr(policy, "length_normalised", False):
        raise UserError(
            "model.rollout.ahead weighs all pairs anew by a ratio of probabilities: set "
            "model.rollout.pairs to all and model.policy.length_normalised to false, or ahead to "
            "false"
        )
    if not (policy.draws_apart or game.oracle.asks_ahead):
        raise UserError(
            f"model.rollout.ahead needs an engine that draws while {type(policy).__name__} is "
            "trained, with weights of its own: set model.policy.generator to VLLMServerGenerator, "
            "or ahead to false"
        )


def _check_replay(game: OnlineGame, steps: Sequence[ProximalStep]) -> None:
    """Refuse to train on earlier rollouts whose answers cannot be weighed for a step's opponent."""
    rollout, name = game.rollout, type(game.algorithm).__name__
    if not rollout.replay:
        return
    if not all(step.among_themselves or step.reweighted for step in steps):
        raise UserError(
            f"model.rollout.replay weighs the answers among earlier responses for the opponent of "
            f"the step, and {name} asks about opponents of their own, who are another player's by "
            "then: set its self_play to true, or replay to 0"
        )
    if not all(step.scored.is_whole and step.opponent.is_whole for step in steps):
        raise UserError(
            "model.rollout.replay weighs responses by opponent / sampler, and what top_k, top_p or "
            f"min_p leave out has no such weight: have {name} draw whole responses, or set replay "
            "to 0"
        )
    if any(step.greedy for step in steps):
        raise UserError(
            "model.rollout.replay weighs responses by opponent / sampler, and a greedy one was not "
            "drawn by a law: set greedy to false, or replay to 0"
        )
    if any({*(step.explored or ())} - {"reference"} for step in steps):
        raise UserError(
            f"model.rollout.replay has {name} explore what an earlier magnet wrote, and its loss "
            "takes responses of the present one: set replay to 0"
        )
    if designs.degree_of(rollout.pairs) is not None:
        raise UserError(
            f"model.rollout.replay weighs all pairs anew, and model.rollout.pairs {rollout.pairs} "
            "asks about some of them: set it to all, or replay to 0"
        )
    if game.algorithm.reuse != "any" or getattr(game.policy, "length_normalised", False):
        raise UserError(
            f"model.rollout.replay has {name} learn from responses of earlier policies by "
            "regression: set model.algorithm.surrogate to "
            "nlhf_zoo.algorithms.surrogates.proximal_regression and "
            "model.policy.length_normalised to false, or replay to 0"
        )


def _check_counting(algorithm: PolicyOptimizer, rollout: Rollout) -> None:
    """Refuse somebody's own count of queries that cannot be told what a rollout asks about."""
    for each in (getattr(algorithm, "inner", None), algorithm):
        if each is not None and not _takes(each.queries, 1, 1, False, **rollout.counting):
            raise UserError(
                f"{type(each).__name__}.queries does not take {' and '.join(rollout.counting)}, "
                "which say what is asked: add them as in PolicyOptimizer.queries, or leave "
                "model.rollout's epochs, pairs, sampler and greedy out"
            )


def _takes(method: Callable[..., Any], *args: object, **kwargs: object) -> bool:
    """Whether a method can be called by such arguments."""
    try:
        inspect.signature(method).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _check_beta(beta: float) -> None:
    """Refuse a temperature that is none, or so far off that 1/beta drowns all else in float64."""
    if not (math.isfinite(beta) and beta > 0):
        raise UserError(f"beta must be a finite number above 0, but model.beta is {beta}")
    if not LEAST_BETA <= beta <= 1 / LEAST_BETA:
        raise UserError(
            f"beta must lie between {LEAST_BETA:g} and {1 / LEAST_BETA:g}, for float64 holds no "
            f"such game, but model.beta is {beta}"
        )


def check_precision(precision: str | int) -> None:
    """Refuse a Trainer's precision that would be that of the weights themselves."""
    if precision == "64-true":
        raise UserError(
            "trainer.precision 64-true would change the type of prompts and of all weights: leave "
            "it at 32-true, tables are in float64 already"
        )
    if precision in ("16-true", "bf16-true"):
        raise UserError(
            f"trainer.precision {precision} would round what is trained: leave it at 32-true, and "
            "set the dtype of the base model instead"
        )


def _check_closed_form(game: OnlineGame) -> None:
    """Refuse an algorithm, a policy, an oracle or a rollout that has no closed form."""
    algorithm, policy, oracle = game.algorithm, game.policy, game.oracle
    gradient = "set model.realisation to GradientSteps"
    if not algorithm.closed_form:
        raise UserError(f"{type(algorithm).__name__} has no closed form: {gradient}")
    if not isinstance(policy, TabularPolicy):
        kind = type(policy).__name__
        raise UserError(f"the closed form needs a TabularPolicy, not {kind}: {gradient}")
    if not oracle.answers_table:
        raise UserError(
            "the closed form needs an oracle that answers from a table in memory, and "
            f"{type(oracle).__name__} does not: {gradient}"
        )
    if not game.rollout.enumerated:
        raise UserError(
            f"the closed form has no samples: set model.rollout to Enumerate, or {gradient}"
        )


def _check_plan(name: str, steps: Sequence[ProximalStep], players: set[str]) -> None:
    """A plan names players that there are, and writes the policy last."""
    named = {step.reference for step in steps} | {step.writes for step in steps}
    for step in steps:
        named |= {*step.centre, *step.sampler, *(step.explored or {})}
        named |= {player for _, opponent in step.payoff for player in opponent}
    if unknown := sorted(named - players):
        raise UserError(f"{name} names the player {unknown[0]}, which it does not declare")
    if any(step.writes == "policy" for step in steps[:-1]) or steps[-1].writes != "policy":
        raise UserError(f"{name} must write the policy in the last step of a round, and only there")


def _try_loss(
    algorithm: PolicyOptimizer,
    step: ProximalStep,
    beta: float,
    rollout: Rollout,
    payoff_bound: float,
) -> None:
    """Compute the loss of equal responses: a surrogate that does not fit its step says so."""
    enumerated = rollout.enumerated
    num = 2 if enumerated else rollout.num_responses
    zero, half = torch.zeros(1, num), torch.full((1, num), 0.5)
    compared = step.pairs if enumerated else step.among_themselves
    batch = Batch(
        log_prob=zero,
        centre_log_prob=zero,
        reference_log_prob=zero,
        payoff=half,
        weight=torch.full((1, num), 1 / num),
        beta=beta,
        enumerated=enumerated,
        self_play=step.self_play and not enumerated,
        preference=torch.full((1, num, num), 0.5) if compared else None,
        pair_weight=torch.full((1, num, num), 1 / num**2) if step.pairs else None,
        sampler_log_prob=None if rollout.epochs is None else zero,
        clip=rollout.clip,
        payoff_bound=payoff_bound,
        explored_log_prob=None if step.explored is None else zero,
        explored_weight=None if step.explored is None else torch.full((1, num), 1 / num),
        length=torch.ones(1, num),
    )
    name = type(algorithm).__name__
    try:
        loss = algorithm.loss(step, batch)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    if not isinstance(loss, torch.Tensor) or loss.shape != (1,):
        made = f"shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else f"{loss!r:.60}"
        raise UserError(f"{name}: the loss of one prompt must be a tensor [1], but it is {made}")
