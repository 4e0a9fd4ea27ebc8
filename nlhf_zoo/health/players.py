"""The reference is the reference, and the players are who they are."""

from __future__ import annotations

import gc
import math
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.check import Check, above, at_most, skipped
from nlhf_zoo.health.preservation import scatter
from nlhf_zoo.health.probe import Probe, gap, one_by_one, total_log_prob
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.language_model.capabilities import rounding
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.policies.language_model.sharding import gradients
from nlhf_zoo.records.shards import local, whole

_REFERENCE = {"reference": 1.0}
_APART = 1e-3  # log-probabilities of scattered players differ by far more


@torch.no_grad()
def scattered_reference(game: OnlineGame, probe: Probe) -> Tensor:
    """Scatter the players, and say what the reference's log-probabilities were before [B, K]."""
    before = probe.log_prob(game.policy, _REFERENCE)
    scatter(game.policy)
    return before


@torch.no_grad()
def reference_stays(game: OnlineGame, probe: Probe, before: Tensor) -> Check:
    """The reference is what it was ``before`` the players were scattered [B, K]."""
    after = probe.log_prob(game.policy, _REFERENCE)
    return at_most(
        "the reference stays when the policy moves",
        gap(before, after),
        0.0,
        "the reference is not the model without its adapters: take it from Players.playing, and "
        "not from peft's get_base_model",
    )


def adapters_apart(game: OnlineGame) -> Check:
    """No adapter is merged into the base model's weights."""
    merged = sum(bool(getattr(module, "merged", False)) for module in game.policy.modules())
    return at_most(
        "no adapter is merged into the base",
        merged,
        0.0,
        "merging changes the reference, and unmerging does not bring its bits back: do not call "
        "merge_adapter",
    )


def reference_is_loaded(game: OnlineGame, probe: Probe) -> Check:
    """The reference is the model of its folder, played by plain transformers, row by row.

    No adapters of ours, no padding, no batch and no chunks. The model is loaded once more.
    """
    name, policy = "the reference is the model as it is loaded", game.policy
    if not isinstance(policy, CausalLMPolicy):
        return skipped(name, "the policy is no language model")
    try:
        model = _load_again(policy)
        theirs = _plain_log_prob(model, probe)
    except torch.OutOfMemoryError:
        return skipped(name, "there is no memory for a second base model")
    finally:
        model = None
        gc.collect()
    with torch.no_grad():
        ours = total_log_prob(policy, _REFERENCE, probe.prompts, probe.responses)
    return at_most(
        name,
        gap(ours, theirs, probe.responses),
        rounding(policy),
        "the reference's weights or its log-probabilities are not those of the model's folder",
        " a token",
    )


def _load_again(policy: CausalLMPolicy) -> Any:
    model = policy.source.load().model.eval()
    if policy.adapter is not None:
        model.load_adapter(policy.adapter)
    here = next(policy.parameters())
    if next(model.parameters()).dtype != here.dtype:
        model = model.to(here.dtype)
    return model.to(here.device)


@torch.no_grad()
def _plain_log_prob(model: Any, probe: Probe) -> Tensor:
    """Log-probabilities [B, K] from a model's own logits, one response at a time."""
    found = torch.zeros_like(probe.responses.weight, dtype=torch.float32)
    for place, prompt, response in one_by_one(probe):
        assert prompt.tokens is not None
        tokens = torch.cat([prompt.tokens, response.tokens[0]], 1)
        law = model(input_ids=tokens, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        each = law.gather(-1, tokens[:, 1:, None])[0, prompt.tokens.shape[1] - 1 :, 0]
        found[place] = each[response.mask[0, 0]].sum()
    return found


@torch.no_grad()
def players_differ(game: OnlineGame, probe: Probe, mixture: bool = True) -> Check:
    """No two of the scattered players, and of half a ``mixture`` of two, are one distribution."""
    policy = game.policy
    who: dict[str, dict[str, float]] = {player: {player: 1.0} for player in policy.players}
    if mixture:
        who["a half mixture"] = {"policy": 0.5, "reference": 0.5}
    log_prob = {name: probe.log_prob(policy, weights) for name, weights in who.items()}
    gaps = {pair: gap(log_prob[pair[0]], log_prob[pair[1]]) for pair in combinations(who, 2)}
    nearest = min(gaps, key=gaps.__getitem__)
    return above(
        "players have weights of their own",
        gaps[nearest],
        _APART,
        f"{nearest[0]} and {nearest[1]} are one distribution: a player is switched to the "
        "weights of another",
    )


@torch.no_grad()
def mixture_of_one(game: OnlineGame, probe: Probe) -> Check:
    """A mixture of weight 1 on one player is exactly that player."""
    policy, worst = game.policy, 0.0
    for player in policy.players:
        other = "reference" if player != "reference" else "policy"
        alone = probe.log_prob(policy, {player: 1.0})
        mixed = probe.log_prob(policy, {player: 1.0, other: 0.0})
        worst = max(worst, gap(alone, mixed))
    return at_most(
        "a mixture of weight 1 is that player",
        worst,
        0.0,
        "a player of weight 0 enters a mixture: leave it out",
    )


@torch.no_grad()
def policy_alone_trains(game: OnlineGame) -> Check:
    """What requires gradient is what `Policy.restore` puts back: the policy, all of it, alone.

    The players have been scattered, so that none of the weights is 0.
    """
    policy = game.policy
    before = _sums(policy)
    weights = policy.snapshot()
    _negate(policy, weights)
    after = _sums(policy)
    _negate(policy, weights)
    moved = {name for name, value in after.items() if value != before[name]}
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    return at_most(
        "the policy, and it alone, is trained",
        len(moved ^ trained),
        0.0,
        "some parameter of the policy is frozen, or another player's is not (peft's set_adapter "
        f"and disable_adapter flip these flags): {min(moved ^ trained, default='')}",
        " tensors wrong",
    )


def _negate(policy: Policy, weights: dict[str, Any]) -> None:
    """Change all of the policy's weights; a second time puts their bits back."""
    for value in weights.values():
        local(value).neg_()
    policy.restore(weights)


def _sums(policy: Policy) -> dict[str, float]:
    policy.at_rest()
    return {name: float(local(p).double().sum()) for name, p in policy.named_parameters()}


def gradient_reaches(game: OnlineGame, probe: Probe) -> Check:
    """The loss's gradient reaches the policy, and no other player carries one."""
    name, policy = "gradient reaches the policy alone", game.policy
    policy.at_rest()
    trained = [p for p in policy.parameters() if p.requires_grad]
    advice = "the policy was switched off on the way: its training would do nothing, without a word"
    if not trained:
        return Check(name, False, "nothing requires gradient", "", advice)
    with torch.enable_grad():
        for player in set(policy.players) - {"policy"}:
            log_prob = probe.log_prob(policy, {player: 1.0})
            # Under gradient checkpointing the inputs carry gradient, and no parameter need.
            if log_prob.requires_grad and _norm(log_prob, trained) is not None:
                return Check(name, False, f"{player} carries gradient", "", "freeze that player")
        log_prob = probe.log_prob(policy, {"policy": 1.0})
        if not log_prob.requires_grad:
            return Check(name, False, "the policy carries none", "", advice)
        norm = _norm(log_prob, trained)
    return above(name, norm or 0.0, 0.0, advice)


def _norm(log_prob: Tensor, parameters: list[nn.Parameter]) -> float | None:
    """Norm of the gradient of a sum of log-probabilities; None where it reaches no parameter."""
    found = gradients(log_prob.sum(), parameters, parameters)
    squares = [float(whole(g.double().square().sum())) for g in found if g is not None]
    return math.sqrt(sum(squares)) if squares else None
