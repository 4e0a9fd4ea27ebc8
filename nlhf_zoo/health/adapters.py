"""Which weights adapters reach, and which of the adapters are reached by a gradient."""

from __future__ import annotations

import torch

from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.check import Check, Finding, Note, skipped
from nlhf_zoo.health.probe import Probe
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.policies.language_model.targets import kinds_without_gradient

_SHOWN = 4  # kinds of layers that a line names


def weights_with_adapters(game: OnlineGame) -> list[Finding]:
    """The share of the linear weights that have adapters, and what has none."""
    policy = game.policy
    if not isinstance(policy, CausalLMPolicy) or (found := policy.adapter_coverage()) is None:
        return []
    without = f"; none on {_some(found.without)}" if found.without else ""
    notes: list[Finding] = [Note("linear weights with adapters", f"{found.share:.0%}{without}")]
    if found.idle:
        notes.append(Note("layers that an adapter cannot act on", _some(found.idle)))
    return notes


def gradient_everywhere(game: OnlineGame, probe: Probe) -> Check | None:
    """Every kind of adapter has gradient: one without is trained by nothing.

    Of experts only those that the probe is routed to have one, so that a kind is looked at, not
    each layer. The players have been scattered: no adapter is zero.
    """
    name, policy = "all adapters have gradient", game.policy
    if not isinstance(policy, CausalLMPolicy):
        return None
    if policy.lora is None:
        return skipped(name, "all weights train")
    trained = policy.trained_parameters()
    with torch.enable_grad():
        total = probe.log_prob(policy, {"policy": 1.0}).sum()
        found = torch.autograd.grad(total, [*trained.values()], allow_unused=True)
    without = sum(gradient is None or not bool(gradient.any()) for gradient in found)
    dead = kinds_without_gradient(trained, found)
    return Check(
        name,
        not dead,
        f"{without} of {len(trained)} tensors have none",
        "each kind has one",
        f"nothing trains {_some(sorted(dead))}: leave them out of model.policy.lora.target_modules",
    )


def _some(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more kinds" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
