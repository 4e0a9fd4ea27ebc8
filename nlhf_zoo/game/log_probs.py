"""Log-probabilities of responses, and the batch of them that a loss is computed from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nlhf_zoo.algorithms.surrogates import Reuse, explored_log_prob
from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.game.held_rollout import FrozenLogProbs
from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.metrics.processes import Figure, Largest, Mean
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.records import Batch, Prompts, ProximalStep, Responses


def score(
    policy: Policy,
    step: ProximalStep,
    prompts: Prompts,
    responses: Responses,
    payoffs: Payoffs,
    beta: float,
    frozen: FrozenLogProbs | None = None,
    clip: float | None = None,
) -> Batch:
    """Log-probabilities of the responses under the step's players, and weights of the valid.

    Invalid answers get weight 0, and the others' weights are scaled to sum to 1 again; a prompt
    whose answers are all invalid has no weight at all, its explored responses neither. Gradient
    flows through ``log_prob`` and ``explored_log_prob`` alone.

    Args:
        policy: who is trained.
        step: the proximal step.
        prompts: B prompts.
        responses: K to each.
        payoffs: what they are worth.
        beta: temperature of the game.
        frozen: of a rollout that serves several gradient steps: the players as they were when it
            was drawn, ``policy`` among them; None of a fresh one.
        clip: of the importance ratio, for ``Batch``.
    """
    log_prob = policy.log_prob({"policy": 1.0}, prompts, responses)
    log_probs = {"policy": log_prob.detach()} if frozen is None else frozen.players
    with torch.no_grad():
        for player in {*step.centre, step.reference} - {"policy"} if frozen is None else ():
            log_probs[player] = policy.log_prob({player: 1.0}, prompts, responses)
        centre = torch.zeros_like(log_prob)
        for player, weight in step.centre.items():
            if weight:
                centre = centre + weight * log_probs[player]
        pair_weight = None
        if step.pairs and payoffs.pair_valid is not None:
            pair_weight = _renormalise(responses.pair_weight() * payoffs.pair_valid, (-2, -1))
    explored = responses.explored
    explored_log_prob = explored_weight = None
    if explored is not None:  # of all responses there are these are the scored ones
        explored_log_prob = (
            log_prob if explored.enumerated else policy.log_prob({"policy": 1.0}, prompts, explored)
        )
        explored_weight = explored.weight * payoffs.valid.any(-1, keepdim=True)
    return Batch(
        log_prob=log_prob,
        centre_log_prob=centre,
        reference_log_prob=log_probs[step.reference],
        payoff=payoffs.payoff,
        weight=_renormalise(responses.weight * payoffs.valid, (-1,)),
        beta=beta,
        enumerated=responses.enumerated,
        self_play=step.self_play and not responses.enumerated,
        preference=payoffs.preference,
        pair_weight=pair_weight,
        sampler_log_prob=None if frozen is None else frozen.sampler,
        clip=clip,
        payoff_bound=payoffs.bound,
        explored_log_prob=explored_log_prob,
        explored_weight=explored_weight,
        length=responses.mask.sum(-1),
    )


def refuse_stale(policy: Policy, step: ProximalStep, responses: Responses) -> None:
    """Refuse responses that other weights have drawn than a step draws from.

    Raises:
        UserError: they are of an earlier version; all responses there are have none.
    """
    now = policy.stamp(step.sampler)
    if responses.version != now and not responses.enumerated:
        raise UserError(
            f"the responses were drawn by version {responses.version} of the weights, but "
            f"these are at version {now}: draw anew, or set model.allow_stale to true"
        )


@torch.no_grad()
def log_prob_of_all(policy: Policy, player: str, prompts: Prompts) -> Tensor:
    """Log-probabilities of all responses to some prompts, without gradient [B, N].

    Raises:
        UserError: the policy cannot list its responses.
    """
    responses = policy.enumerate(prompts)
    if responses is None:
        kind = type(policy).__name__
        raise UserError(f"{kind} cannot list its responses: exact figures need them all")
    return policy.log_prob({player: 1.0}, prompts, responses)


def _renormalise(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    total = weight.sum(dims, keepdim=True)
    return weight / torch.where(total > 0, total, torch.ones_like(total))


def training_figures(
    step: ProximalStep, responses: Responses, batch: Batch, judged: int, reuse: Reuse
) -> dict[str, Figure]:
    """What is logged of a training step beside its loss, by tags, of this process.

    The KL to the reference where the policy's own law drew, of the policy that drew; of responses
    of several tokens their length and how the drawing went; where a loss needs the importance
    ratio, the share of responses of which it is clipped. ``judged`` is the number of the prompts
    that could be judged.
    """
    figures: dict[str, Figure] = {}
    drawn_by = batch.log_prob.detach()
    if batch.sampler_log_prob is not None:
        drawn_by = batch.sampler_log_prob
    if step.draws_policy:
        ratio = drawn_by - batch.reference_log_prob
        ratio = torch.where(batch.weight > 0, ratio, torch.zeros_like(ratio))
        figures["train/kl"] = Mean((batch.weight * ratio).sum(), judged)
    if batch.explored_log_prob is not None:
        explored = explored_log_prob(batch).detach()
        figures["train/explored_log_prob"] = Mean(explored.sum(), judged)
    if batch.reused and reuse == "ratio":
        figures["rollout/clipped"] = Mean(clipped(batch), judged)
    if responses.enumerated or responses.log_prob is None:
        return figures
    num = responses.weight.numel()
    figures["rollout/length"] = Mean(responses.mask.sum().float(), num)
    if responses.truncated is not None:
        figures["rollout/truncated"] = Mean(responses.truncated.sum().float(), num)
    own = dict(step.sampler) == {"policy": 1.0}
    if step.scored.is_plain if batch.reused else own:
        # The loss takes what was computed again; a gap says that the generator drew from another
        # distribution than the one that is trained. A generator says it untempered.
        figures["rollout/log_prob_gap"] = Largest((drawn_by - responses.log_prob).abs().max())
    return figures


def refuse_diverged_loss(loss: Tensor, round: int) -> None:
    """Refuse a mean loss that is not finite; where one process's is not, that of all is not."""
    if not loss.isfinite():
        raise DivergenceError(
            f"training diverged: the loss is {loss.item()} in round {round}, so lower the learning "
            "rate or the step size"
        )


def clipped(batch: Batch) -> Tensor:
    """Weight of the responses whose importance ratio is further from 1 than it is followed."""
    outside = (batch.ratio.detach() - 1).abs() > (math.inf if batch.clip is None else batch.clip)
    return (batch.weight * outside).sum()
