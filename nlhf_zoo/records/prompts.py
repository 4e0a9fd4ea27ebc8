"""Prompts: texts, conversations, tokens, or rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

# What was said so far: messages with `role` and `content`.
Conversation = Sequence[Mapping[str, str]]

_TENSORS = ("ids", "tokens", "mask")
_WORDS = ("text", "conversations")


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
        if self.ids.dim() != 1 or self.ids.dtype != torch.long:
            raise ValueError(
                f"Prompts.ids must be long [B], not {self.ids.dtype} {[*self.ids.shape]}"
            )
        if (self.tokens is None) != (self.mask is None):
            raise ValueError("Prompts.tokens and Prompts.mask come together or not at all")
        for name, words in self._given(_WORDS).items():
            if len(words) != len(self.ids):
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
        taken = torch.tensor([*rows], dtype=torch.long, device=self.ids.device)
        given = {name: tensor[taken] for name, tensor in self._given(_TENSORS).items()}
        given |= {name: [words[i] for i in rows] for name, words in self._given(_WORDS).items()}
        return replace(self, **given)

    @classmethod
    def joined(cls, parts: Sequence[Prompts]) -> Prompts:
        """Different prompts as one record.

        Args:
            parts: with the same fields; the shorter ones are padded on the left.
        """
        given: dict[str, Any] = {}
        for name in parts[0]._given(_TENSORS):
            rows = [getattr(part, name) for part in parts]
            if name != "ids":
                longest = max(row.shape[1] for row in rows)
                rows = [pad(row, (longest - row.shape[1], 0)) for row in rows]
            given[name] = torch.cat(rows)
        for name in parts[0]._given(_WORDS):
            given[name] = [one for part in parts for one in getattr(part, name)]
        return cls(**given)

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
        tensors = self._given(_TENSORS)
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def _given(self, names: Sequence[str]) -> dict[str, Any]:
        """The fields of these names that are not None."""
        return {name: found for name in names if (found := getattr(self, name)) is not None}
