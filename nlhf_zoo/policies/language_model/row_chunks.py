"""Rows of a batch in chunks: a chunk's activations are freed before the next one has any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class Rows(NamedTuple):
    """Prompts with what follows them, one row each.

    Attributes:
        tokens: [R, W].
        mask: bool [R, W], False at padding, wherever it stands.
        scored: bool [R, W], True at the tokens whose log-probability is wanted.
    """

    tokens: Tensor
    mask: Tensor
    scored: Tensor

    @classmethod
    def following(cls, prompts: Tensor, prompt_mask: Tensor, tokens: Tensor, mask: Tensor) -> Rows:
        """Tokens [R, T] behind prompts [B, S], which are padded on the left.

        R is a multiple of B, prompt by prompt.
        """
        each = len(tokens) // len(prompts)
        before, inside = (t.repeat_interleave(each, 0) for t in (prompts, prompt_mask))
        return cls(
            torch.cat([before, tokens], 1),
            torch.cat([inside, mask], 1),
            torch.cat([torch.zeros_like(inside, dtype=torch.bool), mask], 1),
        )

    def packed(self, numbers: Sequence[int]) -> Rows:
        """Some of the rows, as wide as the longest of these; padding stands behind the tokens."""
        which = torch.tensor([*numbers], device=self.tokens.device)
        mask = self.mask[which].bool()
        order = mask.long().argsort(stable=True, dim=1, descending=True)
        order = order[:, : int(mask.sum(1).max())]
        tokens, scored = (t[which].gather(1, order) for t in (self.tokens, self.scored))
        return Rows(tokens, mask.gather(1, order), scored)

    def start(self) -> int:
        """The position that the first scored token of any row is predicted at."""
        return max(int(self.scored.any(0).long().argmax()) - 1, 0)


def plan(lengths: Sequence[int], max_tokens: int, at_least: int = 1) -> list[list[int]]:
    """Numbers of the rows of each chunk: as many rows of like lengths as fit, one at least.

    The largest are halved until there are ``at_least`` so many chunks, or all are single rows.

    A chunk of n rows, the longest of w tokens, has n w <= max_tokens. The last chunk has the
    longest rows, and what did not fill a chunk is in the first: the last one is never repeated.
    """
    order = sorted(range(len(lengths)), key=lambda number: lengths[number], reverse=True)
    chunks: list[list[int]] = []
    while order:
        num = max(1, max_tokens // max(lengths[order[0]], 1))
        chunks.append(order[:num])
        order = order[num:]
    while len(chunks) < min(at_least, len(lengths)):
        largest = max(range(len(chunks)), key=lambda number: len(chunks[number]))
        rows = chunks[largest]
        chunks[largest : largest + 1] = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    return chunks[::-1]


def chunked(rows: Rows, max_tokens: int, most_calls: Callable[[int], int]) -> list[list[int]]:
    """Numbers of the rows of each chunk; empty where one call holds all rows as they are.

    Args:
        rows: of the batch.
        max_tokens: of a chunk, padding included.
        most_calls: how many chunks there are, where these rows need so many.
    """
    lengths = rows.mask.sum(1).tolist()
    needed = plan(lengths, max_tokens) if rows.tokens.numel() > max_tokens else []
    number = most_calls(max(len(needed), 1))
    return needed if number <= max(len(needed), 1) else plan(lengths, max_tokens, number)


def in_turn(
    score: Callable[..., Tensor],
    chunks: Sequence[tuple[Any, ...]],
    first_pass: Callable[[], AbstractContextManager[None]],
    trains: bool,
) -> Tensor:
    """The scores of chunks, one after the other, as one tensor.

    Where gradient is wanted, a chunk keeps nothing: its backward computes it again, with the same
    random numbers, and has freed it when that of the chunk before it begins. The last chunk alone
    is kept, for its backward comes first. So the memory is that of one chunk, however many there
    are, and one chunk by itself is computed once.

    Args:
        score: of a chunk, the arguments of a call; tensors and numbers.
        chunks: one at least.
        first_pass: around what the backward computes again.
        trains: whether gradient is wanted.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return first_pass(), nullcontext()

    found = [
        checkpoint(score, *chunk, use_reentrant=False, context_fn=contexts)
        if trains
        else score(*chunk)
        for chunk in chunks[:-1]
    ]
    found.append(score(*chunks[-1]))
    return found[0] if len(found) == 1 else torch.cat(found)
