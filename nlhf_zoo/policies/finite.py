"""Policies over the actions of a table: everything but the network that makes the logits."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.errors import DivergenceError
from nlhf_zoo.policies.base import Policy, lerp_tensors_, mix
from nlhf_zoo.policies.reference import Reference, UniformReference
from nlhf_zoo.records import PLAIN, Decoding, Mixture, Prompts, Responses, starts_as


class FinitePolicy(Policy, ABC):
    """A distribution over N actions for each of C prompts, from a network with one logit an action.

    Every player but ``reference`` is a copy of the network; ``reference`` is a table of
    log-probabilities.
    """

    log_reference: Tensor
    support: Tensor

    def __init__(self, reference: Reference | None, start: Reference | None, dtype: str) -> None:
        super().__init__()
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64, not {dtype}")
        self.reference_distribution = reference or UniformReference()
        self.start_distribution = start or self.reference_distribution
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.networks = nn.ModuleDict()

    @abstractmethod
    def make_network(self, log_start: Tensor) -> nn.Module:
        """A network: ids [B] -> logits [B, N]; it starts from ``log_start`` [C, N], all finite."""

    @property
    def players(self) -> tuple[str, ...]:
        """All players, ``reference`` among them."""
        return (*self.networks, "reference")

    def bind(
        self,
        players: tuple[str, ...],
        support: Tensor | None,
        names: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Make the players over the oracle's actions.

        Raises:
            ValueError: the oracle has no table of actions.
        """
        if support is None:
            raise ValueError("a policy over a table needs an oracle over a table")
        self.register_buffer("support", support.clone())
        self.whole = bool(support.all())
        log_reference = self.reference_distribution.log_prob(support).to(self.dtype)
        self.register_buffer("log_reference", log_reference)
        log_start = self.start_distribution.log_prob(support).to(self.dtype)
        self.networks["policy"] = self.make_network(log_start.masked_fill(~support, 0.0))
        for player in players:
            network = copy.deepcopy(self.networks["policy"])
            if starts_as(player) == "reference":
                network = self.make_network(log_reference.masked_fill(~support, 0.0))
            self.networks[player] = network.requires_grad_(False)

    def encode(self, prompts: Prompts) -> Prompts:
        """A table knows its prompts by number."""
        return prompts

    def _logits(self, player: str, ids: Tensor) -> Tensor:
        if player == "reference":
            return self.log_reference[ids]
        logits: Tensor = self.networks[player](ids)
        # Logits of absent actions stay finite inside, so that neither weight decay nor a mixture
        # meets inf - inf.
        return logits if self.whole else logits.masked_fill(~self.support[ids], -torch.inf)

    def distribution(self, who: Mixture, prompts: Prompts, decoding: Decoding = PLAIN) -> Tensor:
        """Log-probabilities of all actions [B, N] under a mixture, normalised."""
        mixture = {player: weight for player, weight in who.items() if weight}
        logits = [self._logits(player, prompts.ids) for player in mixture]
        log_prob = mix(logits, [*mixture.values()])
        return log_prob if decoding.is_plain else _decode(log_prob, decoding)

    def log_prob(
        self, who: Mixture, prompts: Prompts, responses: Responses, decoding: Decoding = PLAIN
    ) -> Tensor:
        """Log-probability of each response [B, K]."""
        log_prob = self.distribution(who, prompts, decoding)
        return log_prob if responses.enumerated else log_prob.gather(1, responses.actions)

    @torch.no_grad()
    def sample(
        self, who: Mixture, prompts: Prompts, num: int, decoding: Decoding, rng: torch.Generator
    ) -> Responses:
        """Independent draws.

        Raises:
            DivergenceError: the policy is no distribution any more.
        """
        probability = self.distribution(who, prompts, decoding).exp()
        if not probability.isfinite().all():
            raise DivergenceError(
                "training diverged: the policy has probabilities that are not finite, "
                "so lower the learning rate or the step size"
            )
        actions = torch.multinomial(probability, num, replacement=True, generator=rng)
        weight = torch.full(actions.shape, 1 / num, dtype=self.dtype, device=actions.device)
        return replace(_responses(actions, weight, False), version=self.stamp(who))

    def enumerate(self, prompts: Prompts) -> Responses:
        """All actions; those that do not exist for a prompt have weight 0."""
        support = self.support[prompts.ids]
        actions = torch.arange(support.shape[1], device=support.device).expand(support.shape)
        return _responses(actions, support / support.sum(-1, keepdim=True).to(self.dtype), True)

    @override
    def lerp_(self, source: str, target: str, weight: float) -> None:
        if target == "reference" or source == "reference":
            raise ValueError("the reference never moves, and is no copy of the network")
        networks = self.networks
        lerp_tensors_(networks[source].state_dict(), networks[target].state_dict(), weight)

    @override
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.networks["policy"].named_parameters())


def _responses(actions: Tensor, weight: Tensor, enumerated: bool) -> Responses:
    tokens = actions[:, :, None]
    mask = torch.ones(1, dtype=torch.bool, device=actions.device).expand(tokens.shape)
    return Responses(tokens, mask, weight, enumerated)


def _decode(log_prob: Tensor, decoding: Decoding) -> Tensor:
    """Temper and truncate a distribution over actions, as language models do with tokens."""
    logits = log_prob / decoding.temperature
    if decoding.temperature == torch.inf:
        logits = logits.masked_fill(log_prob == -torch.inf, -torch.inf)
    if 0 < decoding.top_k < logits.shape[-1]:
        least = logits.topk(decoding.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if decoding.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(
            -1, order, before >= decoding.top_p
        )
        logits = logits.masked_fill(dropped, -torch.inf)
    if decoding.min_p > 0:
        logits = logits.log_softmax(-1)
        floor = logits.max(-1, keepdim=True).values + math.log(decoding.min_p)
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return logits.log_softmax(-1)
