"""What the checks are tried on: a few prompts, and responses to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.records import PLAIN, Mixture, Prompts, Responses
from nlhf_zoo.records.random_streams import random_stream

_SEED = 20_250_519  # of the probes' own random streams
_LENGTH = 16  # tokens of a response that is not drawn


@dataclass(frozen=True, slots=True)
class Probe:
    """What a check is tried on.

    Args:
        prompts: B prompts as the policy reads them.
        responses: K responses to each.
    """

    prompts: Prompts
    responses: Responses

    def log_prob(self, policy: Policy, who: Mixture) -> Tensor:
        """Log-probabilities of the responses [B, K] under a mixture of the policy's players."""
        return policy.log_prob(who, self.prompts, self.responses)


def drawn(policy: Policy, prompts: Prompts, num: int = 2) -> Probe:
    """A probe with responses that the policy draws."""
    prompts = policy.encode(prompts)
    rng = random_stream(_SEED, 0, 0, prompts.ids.device, "probe")
    return Probe(prompts, policy.sample({"policy": 1.0}, prompts, num, PLAIN, rng))


def random_tokens(policy: CausalLMPolicy, prompts: Prompts, num: int = 2) -> Probe:
    """A probe with responses of random tokens, which cost nothing: the same in every process.

    No token ends a response but the last one.
    """
    prompts = policy.encode(prompts)
    length = min(_LENGTH, policy.max_new_tokens)
    tokens = inner_tokens(policy, (len(prompts), num, length)).to(prompts.ids.device)
    weight = torch.full(tokens.shape[:2], 1 / num, device=tokens.device)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return Probe(prompts, Responses(tokens, mask, weight))


def inner_tokens(policy: CausalLMPolicy, shape: tuple[int, ...]) -> Tensor:
    """Random tokens that end no response."""
    tokens = policy.plain_tokens()
    rng = torch.Generator().manual_seed(_SEED)
    return torch.tensor(tokens)[torch.randint(len(tokens), shape, generator=rng)]


def one_by_one(probe: Probe) -> Iterator[tuple[tuple[int, int], Prompts, Responses]]:
    """The place (b, k) of each response, its prompt and itself, both alone and without padding.

    An empty response keeps a token that is masked.
    """
    responses = probe.responses
    for row, number in np.ndindex(*responses.weight.shape):
        prompt = probe.prompts.take([row])
        if prompt.tokens is not None and prompt.mask is not None:
            kept = prompt.mask[0].bool()
            prompt = replace(prompt, tokens=prompt.tokens[:, kept], mask=prompt.mask[:, kept])
        length = max(1, int(responses.mask[row, number].sum()))
        tokens, mask = responses.tokens[row, number, :length], responses.mask[row, number, :length]
        weight = torch.ones_like(responses.weight[:1, :1])
        yield (row, number), prompt, Responses(tokens[None, None], mask[None, None], weight)


def total_log_prob(policy: Policy, who: Mixture, prompts: Prompts, responses: Responses) -> Tensor:
    """Log-probability of whole responses [B, K], also where the policy divides by their length."""
    log_prob = policy.log_prob(who, prompts, responses)
    if getattr(policy, "length_normalised", False):
        return log_prob * responses.mask.sum(-1)
    return log_prob


def gap(one: Tensor, other: Tensor, responses: Responses | None = None) -> float:
    """Largest difference, for each token where the responses are given."""
    difference = (one.double() - other.double()).abs()
    difference = torch.where(one == other, torch.zeros_like(difference), difference)  # of -inf too
    if responses is not None:
        difference = difference / responses.mask.sum(-1).clamp(min=1)
    return float(difference.max()) if difference.numel() else 0.0
