"""Prompts, responses to them, and what an oracle says of pairs of responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
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
        ids: which prompts these are, LongTensor[B]; for a table the row of the game. -1 is one that
            stands in where a process has none of its own: it is drawn for, and nothing else.
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
        """Different prompts, with the same fields, as one; the shorter are padded on the left."""
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

    def trimmed(self) -> Prompts:
        """These prompts without columns of tokens that are padding in all of them."""
        if self.tokens is None or self.mask is None:
            return self
        used = self.mask.any(0).nonzero()
        first = int(used[0]) if len(used) else 0
        return replace(self, tokens=self.tokens[:, first:], mask=self.mask[:, first:])

    def split(self, parts: int) -> list[Prompts]:
        """These prompts in parts of nearly equal size; fewer where there are fewer prompts."""
        parts = min(parts, len(self))
        if parts < 2:
            return [self]
        ends = [len(self) * part // parts for part in range(parts + 1)]
        return [self.take(range(*both)) for both in pairwise(ends)]

    def to(self, device: torch.device | str) -> Prompts:
        """These prompts on another device (Lightning moves batches by this method)."""
        return replace(self, **{name: one.to(device) for name, one in self.tensors().items()})

    def tensors(self) -> dict[str, Any]:
        """Its tensors, by name."""
        return self._given(_TENSORS)

    def without_text(self) -> Prompts:
        """The numbers and tokens of these prompts alone."""
        return replace(self, text=None, conversations=None)

    def _given(self, names: Sequence[str]) -> dict[str, Any]:
        """The fields of these names that are not None."""
        return {name: found for name in names if (found := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Responses:
    """K responses to each of B prompts, with the weight of each in an expectation.

    Args:
        tokens: LongTensor[B, K, T]; T = 1 for tables, where the token is the action.
        mask: bool [B, K, T], True where a token counts.
        weight: [B, K], sums to 1 over K: probabilities when all responses are enumerated, 1/K when
            sampled.
        enumerated: whether these are all the responses there are.
        text: the responses as text, B lists of K, where there is one.
        version: version of the weights that drew them; training on stale ones is refused unless
            asked for.
        truncated: bool [B, K], True where a response was cut at the limit of tokens before it
            ended; None where responses cannot be cut.
        log_prob: what the sampler itself says of their log-probability, untempered and whole
            [B, K]; for comparison alone, never for a loss. None where it says nothing.
        explored: further responses to the same prompts, of the step's ``explored``, which are not
            judged; None where it names nobody.
    """

    tokens: Tensor
    mask: Tensor
    weight: Tensor
    enumerated: bool = False
    text: Sequence[Sequence[str]] | None = None
    version: int = 0
    truncated: Tensor | None = None
    log_prob: Tensor | None = None
    explored: Responses | None = None

    def __post_init__(self) -> None:
        if self.tokens.dim() != 3 or self.tokens.shape != self.mask.shape:
            shapes = f"{[*self.tokens.shape]} and mask {[*self.mask.shape]}"
            raise ValueError(f"Responses.tokens {shapes} must both be [B, K, T]")
        if self.weight.shape != self.tokens.shape[:2]:
            shapes = f"{[*self.weight.shape]} must be [B, K] = {[*self.tokens.shape[:2]]}"
            raise ValueError(f"Responses.weight {shapes}")
        for name in ("truncated", "log_prob"):
            if (per := getattr(self, name)) is not None and per.shape != self.weight.shape:
                shapes = f"{[*per.shape]} must be [B, K] = {[*self.weight.shape]}"
                raise ValueError(f"Responses.{name} {shapes}")

    @classmethod
    def joined(cls, parts: Sequence[Responses]) -> Responses:
        """Sampled responses to different prompts as one record.

        All are of one version and as many a prompt; the shorter are padded behind their end.
        """
        texts = [part.text for part in parts]
        text = None if None in texts else [row for text in texts for row in text or ()]
        joined = cls._along(0, parts, torch.cat([part.weight for part in parts]), text)
        explored = [part.explored for part in parts if part.explored is not None]
        return replace(joined, explored=cls.joined(explored) if explored else None)

    @classmethod
    def beside(cls, parts: Sequence[Responses]) -> Responses:
        """Sampled responses to the same prompts as one record, all of one version and weight."""
        texts = [part.text for part in parts]
        rows = zip(*(text or () for text in texts), strict=True)
        text = None if None in texts else [[*chain(*row)] for row in rows]
        weight = torch.cat([part.weight for part in parts], 1)
        return cls._along(1, parts, torch.full_like(weight, 1 / weight.shape[1]), text)

    @classmethod
    def _along(
        cls,
        dim: int,
        parts: Sequence[Responses],
        weight: Tensor,
        text: Sequence[Sequence[str]] | None,
    ) -> Responses:
        longest = max(part.tokens.shape[2] for part in parts)

        def padded(tensor: Tensor) -> Tensor:
            return pad(tensor, (0, longest - tensor.shape[2]))

        def all_of(name: str) -> Tensor | None:
            found = [getattr(part, name) for part in parts]
            return None if any(one is None for one in found) else torch.cat(found, dim)

        return cls(
            tokens=torch.cat([padded(part.tokens) for part in parts], dim),
            mask=torch.cat([padded(part.mask) for part in parts], dim),
            weight=weight,
            text=text,
            version=parts[0].version,
            truncated=all_of("truncated"),
            log_prob=all_of("log_prob"),
        )

    def take(self, rows: Sequence[int]) -> Responses:
        """The responses to some of the prompts, cut behind the last token of the longest."""
        taken = torch.tensor([*rows], dtype=torch.long, device=self.tokens.device)
        mask = self.mask[taken]
        used = mask.flatten(0, 1).any(0).nonzero()
        longest = int(used[-1]) + 1 if len(used) else 1

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[taken]

        return replace(
            self,
            tokens=self.tokens[taken][:, :, :longest],
            mask=mask[:, :, :longest],
            weight=self.weight[taken],
            text=None if self.text is None else [self.text[i] for i in rows],
            truncated=of(self.truncated),
            log_prob=of(self.log_prob),
            explored=None if self.explored is None else self.explored.take(rows),
        )

    def to(self, device: torch.device | str) -> Responses:
        """These responses on another device."""
        names = ("tokens", "mask", "weight", "truncated", "log_prob")
        given = {name: one for name in names if (one := getattr(self, name)) is not None}
        moved = replace(self, **{name: tensor.to(device) for name, tensor in given.items()})
        return moved if self.explored is None else replace(moved, explored=self.explored.to(device))

    @property
    def num(self) -> int:
        """The number of responses a prompt, K."""
        return self.tokens.shape[1]

    @property
    def actions(self) -> Tensor:
        """The actions of a table [B, K].

        Raises:
            ValueError: responses have more than one token.
        """
        if self.tokens.shape[2] != 1:
            raise ValueError(
                f"a table's responses have one token, these have {self.tokens.shape[2]}"
            )
        return self.tokens[:, :, 0]

    def pair_weight(self) -> Tensor:
        """Weight of each pair in an expectation over two independent responses, [B, K, K].

        w w' when enumerated; 1 / (K (K - 1)) off the diagonal when sampled, so that a sum with
        these weights is unbiased for the enumerated one.

        Raises:
            ValueError: there is but one sampled response, so no pair.
        """
        if self.enumerated:
            return self.weight[:, :, None] * self.weight[:, None, :]
        if self.num < 2:
            raise ValueError(
                "a loss on pairs needs two responses a prompt: set num_responses to 2 or more"
            )
        off_diagonal = 1 - torch.eye(self.num, dtype=self.weight.dtype, device=self.weight.device)
        return (off_diagonal / (self.num * (self.num - 1))).expand(len(self.weight), -1, -1)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the oracle said.

    Args:
        preference: P(first_k > second_l | prompt_b) in [0, 1], [B, K, L]. Meaningless where
            invalid.
        valid: bool [B, K, L]; False where no answer could be had. Such an answer is never a label.
    """

    preference: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        if self.preference.dim() != 3 or self.preference.shape != self.valid.shape:
            raise ValueError(
                f"Comparison.preference {[*self.preference.shape]} and valid {[*self.valid.shape]} "
                "must both be [B, K, L]"
            )

    def average(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Average over the second responses by their ``weight`` [B, L], and its validity, [B, K].

        Weights are renormalised over the valid answers; a response without any valid answer is
        invalid.
        """
        weight = weight[:, None, :] * self.valid
        total = weight.sum(-1)
        preference = torch.where(self.valid, self.preference, torch.zeros_like(self.preference))
        least = torch.finfo(total.dtype).tiny
        return (weight * preference).sum(-1) / total.clamp(min=least), total > 0
