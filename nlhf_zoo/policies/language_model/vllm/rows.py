"""Rows of a request as an engine is asked for them, and what was drawn, read back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies.language_model.generation import Drawn, Request
from nlhf_zoo.policies.language_model.vllm.adapters import AdapterVersion


@dataclass(frozen=True, slots=True)
class Row:
    """One response that is asked for."""

    prompt: list[int]
    seed: int  # of the engine's random numbers for this row alone
    adapter: AdapterVersion
    request: Request  # which says how it is drawn, and where it ends


@dataclass(frozen=True, slots=True)
class Completion:
    """One response that an engine drew.

    Args:
        tokens: as they were drawn, the one that ended it among them.
        log_probs: of each token, of the law before temperature, truncation and what may not end.
        end_log_probs: of the tokens that end a response, at each place, of the same law; empty
            where they were not asked for.
        ended: whether the engine says that it came to an end, and not to the limit.
    """

    tokens: Sequence[int]
    log_probs: Sequence[float]
    end_log_probs: Sequence[Sequence[float]]
    ended: bool


def rows_of(request: Request, adapter: AdapterVersion) -> list[Row]:
    """B K rows, each with a seed of its own from the game's stream."""
    rng, count = request.rng, len(request.tokens) * request.num
    seeds = torch.randint(2**63 - 1, (count,), generator=rng, device=rng.device).tolist()
    prompts = [
        tokens[keep].tolist()
        for tokens, keep in zip(request.tokens.cpu(), request.mask.bool().cpu(), strict=True)
    ]
    return [
        Row(prompts[number // request.num], seed, adapter, request)
        for number, seed in enumerate(seeds)
    ]


def drawn_from(completions: Sequence[Completion], request: Request) -> Drawn:
    """What a request is answered by.

    A stop string ends a response where the trainer finds it, whatever was drawn behind.

    Raises:
        UserError: the engine ends responses elsewhere than the policy does.
    """
    for completion in completions:
        _refuse_other_end(completion, request)
    lengths = torch.tensor([len(completion.tokens) for completion in completions])
    inside = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = torch.full(inside.shape, request.pad)
    log_prob = torch.zeros(inside.shape, dtype=torch.float64)
    tokens[inside] = torch.tensor([t for each in completions for t in each.tokens])
    log_prob[inside] = torch.tensor(
        [value for each in completions for value in _restricted(each, request)], dtype=torch.float64
    )
    is_end = torch.isin(tokens, torch.tensor([*request.ends], dtype=torch.long))
    if request.stops is not None:
        device = request.tokens.device
        is_end |= request.stops.ended(tokens.to(device)).to(is_end)
    is_end &= inside
    mask = inside & (is_end.long().cumsum(-1) - is_end.long() == 0)
    total = log_prob.masked_fill(~mask, 0.0).sum(-1).float()
    found = (tokens, mask, ~(is_end & mask).any(-1), total)
    return Drawn(*(part.to(request.tokens.device) for part in found))


def diverged(request: Request) -> Drawn:
    """What is drawn by weights that are no numbers: the game then says that training diverged."""
    count, device = len(request.tokens) * request.num, request.tokens.device
    yes = torch.ones(count, 1, dtype=torch.bool, device=device)
    nan = torch.full((count,), torch.nan, device=device)
    return Drawn(torch.full((count, 1), request.pad, device=device), yes, yes[:, 0], nan)


def _refuse_other_end(completion: Completion, request: Request) -> None:
    tokens, most = completion.tokens, request.max_new_tokens
    ends = bool(tokens) and tokens[-1] in request.ends
    if not 1 <= len(tokens) <= most or (not completion.ended and len(tokens) < most):
        raise UserError(
            f"the engine ended a response after {len(tokens)} of {most} tokens: raise its "
            "max_model_len to what prompts and model.policy.max_new_tokens need together"
        )
    if completion.ended and not ends:
        raise UserError(
            f"the engine ended a response at the token {tokens[-1]}, which ends none of the "
            "policy's: start the server with --generation-config vllm"
        )


def _restricted(completion: Completion, request: Request) -> list[float]:
    """Log-probabilities of tokens of which the first have no end among those to choose from.

    log p(token) - log(1 - sum_e p(e)), of tokens e that end a response.
    """
    found = list(completion.log_probs)
    if request.ends:
        for place in range(min(request.min_new_tokens, len(found))):
            early = math.fsum(math.exp(value) for value in completion.end_log_probs[place])
            found[place] -= math.log1p(-early) if early < 1 else -math.inf
    return found


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all are numbers."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
