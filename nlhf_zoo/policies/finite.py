"""Policies over the actions of a table: one logit an action, or a network that makes the logits."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

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
    draws_apart = True  # it is drawn at once, and handed out

    def __init__(
        self,
        reference: Reference | None = None,
        start: Reference | None = None,
        dtype: str = "float64",
    ) -> None:
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
    @override
    def divergence(
        self, who: Mixture, other: Mixture, prompts: Prompts, responses: Responses
    ) -> tuple[Tensor, Tensor]:
        """KL and entropy, exact, whatever was drawn."""
        ours, theirs = (self.distribution(each, prompts) for each in (who, other))
        probability = ours.exp()
        ratio = torch.where(probability > 0, ours - theirs, 0.0)
        kl, entropy = (probability * ratio).sum(-1), torch.special.entr(probability).sum(-1)
        return kl[:, None].expand_as(responses.weight), entropy[:, None].expand_as(responses.weight)

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


class TabularPolicy(FinitePolicy):
    """One logit for each action of each prompt; the only policy that can take steps in closed form.

    Args:
        reference: the reference policy mu; uniform if it is not given.
        start: where the policy starts; at the reference if it is not given.
        dtype: float32 or float64.
    """

    @override
    def make_network(self, log_start: Tensor) -> nn.Module:
        return _LogitTable(log_start)

    def logits(self) -> dict[str, Tensor]:
        """The logits of every player but the reference [C, N]: the tensors, not copies."""
        return {player: next(network.parameters()) for player, network in self.networks.items()}


class _LogitTable(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits[ids]


class MLPPolicy(FinitePolicy):
    """A multilayer perceptron of its own for each prompt or game, whose outputs are logits.

    It is the neural policy of the EGPO simulation, arXiv 2503.08942.

    The input is a constant vector of ones; the output is added to the starting logits, and the
    last layer starts at zero, so that the policy starts exactly at ``start``.

    Args:
        reference: the reference policy mu; uniform if it is not given.
        start: where the policy starts; at the reference if it is not given.
        width: units of a hidden layer.
        layers: linear layers, the last one among them.
        dtype: float32 or float64.
    """

    def __init__(
        self,
        reference: Reference | None = None,
        start: Reference | None = None,
        width: int = 10,
        layers: int = 3,
        dtype: str = "float64",
    ) -> None:
        super().__init__(reference, start, dtype)
        if width < 1 or layers < 1:
            raise ValueError(
                f"width and layers must be at least 1, but they are {width} and {layers}"
            )
        self.width = width
        self.layers = layers

    @override
    def make_network(self, log_start: Tensor) -> nn.Module:
        return _BatchedMLP(log_start, self.width, self.layers)


class _BatchedMLP(nn.Module):
    offset: Tensor

    def __init__(self, log_start: Tensor, width: int, layers: int) -> None:
        super().__init__()
        num_prompts, num_actions = log_start.shape
        self.width = width
        sizes = [width] * layers + [num_actions]
        bound = width**-0.5  # as torch.nn.Linear starts
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            scale = 0.0 if layer == layers - 1 else bound
            for parameters, rows in ((self.weights, inputs), (self.biases, 1)):
                start = torch.empty(num_prompts, rows, outputs, dtype=log_start.dtype)
                parameters.append(nn.Parameter(start.uniform_(-scale, scale)))
        self.register_buffer("offset", log_start.clone())

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.ones(len(ids), 1, self.width, dtype=self.offset.dtype, device=ids.device)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias[ids], hidden if layer == 0 else hidden.relu(), weight[ids])
        return self.offset[ids] + hidden[:, 0]


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
