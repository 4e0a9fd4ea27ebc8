"""What a generator drew as the responses of a policy, with their texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.policies.language_model.generation import Drawn, Request
from nlhf_zoo.records import Responses


def responses_of(
    request: Request,
    drawn: Drawn,
    tokenizer: Any,
    version: int,
    may_end: bool,
    normalised: bool = False,
) -> Responses:
    """What was drawn as B rows of K responses, with padding behind each.

    Args:
        request: what was asked for.
        drawn: the rows.
        tokenizer: for texts, which are made at the first look.
        version: of the weights that drew.
        may_end: whether anything ends a response; else none is called truncated.
        normalised: divide log-probabilities by the number of tokens.
    """
    shape = (len(request.tokens), request.num)
    tokens, mask = drawn.tokens.unflatten(0, shape), drawn.mask.unflatten(0, shape)
    log_prob = drawn.log_prob.unflatten(0, shape)
    return Responses(
        tokens=tokens.masked_fill(~mask, request.pad),
        mask=mask,
        weight=torch.full(shape, 1 / request.num, device=tokens.device),
        text=DecodedText(tokenizer, tokens, mask),
        version=version,
        truncated=drawn.truncated.unflatten(0, shape) if may_end else None,
        log_prob=log_prob / mask.sum(-1) if normalised else log_prob,
    )


class DecodedText(Sequence[Sequence[str]]):
    """B rows of K texts without special tokens, of ``tokens`` [B, K, T] where ``mask`` is True.

    All are decoded at the first look.
    """

    def __init__(self, tokenizer: Any, tokens: Tensor, mask: Tensor) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._mask = mask

    @cached_property
    def _rows(self) -> list[list[str]]:
        num = self._tokens.shape[1]
        flat, mask = self._tokens.flatten(0, 1).cpu(), self._mask.flatten(0, 1).cpu()
        kept = [row[keep].tolist() for row, keep in zip(flat, mask, strict=True)]
        texts = self._tokenizer.batch_decode(kept, skip_special_tokens=True)
        return [texts[i : i + num] for i in range(0, len(texts), num)]

    def __getitem__(self, index: Any) -> Any:
        """The texts of one prompt, or of several."""
        return self._rows[index]

    def __len__(self) -> int:
        """The number of prompts, B."""
        return len(self._tokens)
