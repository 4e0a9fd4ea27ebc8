"""Prompts: texts, conversations, tokens, or rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

# What was said so far: messages with `role` and `content`.
Conversation = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Prompts:
    """A batch of prompts.

    Args:
        ids: which prompts these are, LongTensor[B]; for a table the row of the game.
        tokens: token ids [B, S], None for a table.
        mask: 1 where ``tokens`` is not padding [B, S], None for a table.
        text: the prompts as text, where there is one; of a conversation, its last message.
        conversations: the prompts as conversations, B lists of messages with ``role`` and
            ``content``; None for prompts that are plain text or rows of a table.
    """

    ids: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
    text: Sequence[str] | None = None
    conversations: Sequence[Conversation] | None = None

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.ids.dim() != 1 or self.ids.dtype != torch.long:
            raise ValueError(
                f"Prompts.ids must be long [B], not {self.ids.dtype} {[*self.ids.shape]}"
            )
        if (self.tokens is None) != (self.mask is None):
            raise ValueError("Prompts.tokens and Prompts.mask come together or not at all")
        for name in ("text", "conversations"):
            if (words := getattr(self, name)) is not None and len(words) != len(self.ids):
                raise ValueError(f"Prompts.{name} has {len(words)} entries, not {len(self.ids)}")
        if self.tokens is None or self.mask is None:
            return
        if self.tokens.shape != self.mask.shape or self.tokens.shape[:1] != self.ids.shape:
            raise ValueError(
                f"Prompts.tokens {[*self.tokens.shape]} and mask {[*self.mask.shape]} must be "
                f"[B, S] with B = {len(self.ids)}"
            )

    def __len__(self) -> int:
        """The number of prompts, B."""
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> Prompts:
        """Some of the prompts, in the padding of all."""
        kept = torch.tensor([*rows], dtype=torch.long, device=self.ids.device)
        return Prompts(
            ids=self.ids[kept],
            tokens=None if self.tokens is None else self.tokens[kept],
            mask=None if self.mask is None else self.mask[kept],
            text=None if self.text is None else [self.text[i] for i in rows],
            conversations=(
                None if self.conversations is None else [self.conversations[i] for i in rows]
            ),
        )

    def split(self, parts: int) -> list[Prompts]:
        """These prompts in parts of nearly equal size; fewer parts where there are fewer prompts.

        Args:
            parts: how many.
        """
        parts = min(parts, len(self))
        if parts < 2:
            return [self]
        ends = [len(self) * part // parts for part in range(parts + 1)]
        return [self.take(range(*both)) for both in pairwise(ends)]

    def to(self, device: torch.device | str) -> Prompts:
        """These prompts on another device (Lightning moves batches by this method)."""
        move = {
            n: t.to(device)
            for n in ("ids", "tokens", "mask")
            if (t := getattr(self, n)) is not None
        }
        return replace(self, **move)
