"""Prompts as the tokens that a policy reads, no longer than they may be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from nlhf_zoo.data.texts.prompt_rows import PromptRows, PromptSource
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Prompts

TooLong = Literal["refuse", "truncate", "drop"]
_CHUNK = 256  # prompts encoded at once


class Encoder(Protocol):
    """What makes tokens of prompts: a policy."""

    def encode(self, prompts: Prompts) -> Prompts:
        """The prompts with tokens."""


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """Prompts with the tokens that a policy reads.

    Args:
        ids: numbers of the prompts.
        rows: N prompts as they were read.
        tokens: N lists of token ids, without padding.
    """

    ids: Sequence[int]
    rows: PromptRows
    tokens: list[NDArray[np.int32]]

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.tokens)

    def take(self, places: Sequence[int]) -> EncodedPrompts:
        """Some of them."""
        return EncodedPrompts(
            [self.ids[i] for i in places],
            self.rows.take(places),
            [self.tokens[i] for i in places],
        )

    def batch(self, places: Sequence[int]) -> Prompts:
        """Some of them as a batch, padded on the left to the longest."""
        taken = self.take(places)
        width = max(map(len, taken.tokens))
        tokens = torch.zeros(len(taken), width, dtype=torch.long)
        mask = torch.zeros(len(taken), width, dtype=torch.bool)
        for place, row in enumerate(taken.tokens):
            tokens[place, width - len(row) :] = torch.from_numpy(row)
            mask[place, width - len(row) :] = True
        rows = taken.rows
        return Prompts(torch.tensor(taken.ids), tokens, mask, rows.text, rows.conversations)

    def longest_first(self) -> list[int]:
        """Places of the prompts by falling number of tokens, equal ones in their own order."""
        return sorted(range(len(self)), key=lambda place: -len(self.tokens[place]))

    def fingerprint(self) -> str:
        """Equal for equal prompts in equal order, and for no others."""
        digest = hashlib.sha256()
        for number, text, row in zip(self.ids, self.rows.text, self.tokens, strict=True):
            digest.update(f"{number} {len(text.encode())} {len(row)} {text}".encode())
            digest.update(row.tobytes())
        return digest.hexdigest()


def encode(
    policy: Encoder,
    rows: PromptRows,
    ids: Sequence[int],
    where: Callable[[int], str],
    shown: bool = False,
) -> EncodedPrompts:
    """Let a policy encode prompts.

    Args:
        policy: whose tokens they become.
        rows: N prompts.
        ids: their numbers.
        where: says where a prompt stands, by its place.
        shown: show a progress bar where it takes longer than two seconds.

    Raises:
        UserError: the policy reads no text, or refuses a prompt.
    """
    tokens: list[NDArray[np.int32]] = []
    with tqdm(
        total=len(rows), desc="Encoding", unit=" prompts", delay=2, leave=False, disable=not shown
    ) as bar:
        for first in range(0, len(rows), _CHUNK):
            places = range(first, min(first + _CHUNK, len(rows)))
            try:
                tokens += _encode(policy, rows.take(places))
            except UserError:
                _refuse_the_first(policy, rows, places, where)
                raise
            bar.update(len(places))
    for place, row in enumerate(tokens):
        if not len(row):
            raise UserError(f"{where(place)} becomes no tokens: take it out")
    return EncodedPrompts(ids, rows, tokens)


def _encode(policy: Encoder, rows: PromptRows) -> list[NDArray[np.int32]]:
    prompts = Prompts(torch.arange(len(rows)), text=rows.text, conversations=rows.conversations)
    encoded = policy.encode(prompts)
    if encoded.tokens is None or encoded.mask is None:
        raise UserError(
            f"TextPrompts needs a policy that reads text, and {type(policy).__name__} does not: "
            "choose another model.policy, or TablePrompts as data"
        )
    mask = encoded.mask.bool()
    flat = encoded.tokens[mask].to("cpu", torch.int32).numpy()
    return np.split(flat, mask.sum(-1).cumsum(0)[:-1].tolist())


def _refuse_the_first(
    policy: Encoder, rows: PromptRows, places: Sequence[int], where: Callable[[int], str]
) -> None:
    """Say which of several prompts a policy refuses, where it does not refuse them all."""
    refused: dict[int, UserError] = {}
    for place in places:
        try:
            _encode(policy, rows.take([place]))
        except UserError as error:
            refused[place] = error
    if 0 < len(refused) < len(places):
        first, why = next(iter(refused.items()))
        raise UserError(f"{where(first)} cannot be encoded: {why}") from why


@dataclass(frozen=True, slots=True)
class LengthLimit:
    """The longest prompt, and what becomes of longer ones.

    Args:
        tokens: of the longest prompt; None for no limit.
        too_long: refuse, truncate or drop longer ones.
    """

    tokens: int | None
    too_long: TooLong

    def apply(
        self, policy: Encoder, prompts: EncodedPrompts, source: PromptSource, offset: int
    ) -> tuple[EncodedPrompts, int]:
        """The prompts that are left, as long as they may be, and how many were too long.

        Args:
            policy: who encoded them.
            prompts: N prompts.
            source: where they come from.
            offset: number of the prompt of its first row.

        Raises:
            UserError: there are some that may not be, or none is left.
        """
        limit = self.tokens
        if limit is None:
            return prompts, 0
        long = [place for place, row in enumerate(prompts.tokens) if len(row) > limit]
        if not long:
            return prompts, 0
        if self.too_long == "truncate":
            return self._cut(policy, prompts, long, limit), len(long)
        count = f"{len(long)} of {len(prompts)} prompts of {source.path}"
        if self.too_long == "refuse":
            first, row = prompts.ids[long[0]] - offset, prompts.tokens[long[0]]
            ways = "drop" if prompts.rows.conversations is not None else "drop or truncate"
            raise UserError(
                f"{count} have more than data.max_prompt_tokens = {limit} tokens, the first of "
                f"them {source.where(first)} with {len(row)}: raise it, or set data.too_long to "
                f"{ways}"
            )
        if len(long) == len(prompts):
            raise UserError(f"all {count} have more than data.max_prompt_tokens = {limit} tokens")
        dropped = set(long)
        return prompts.take([i for i in range(len(prompts)) if i not in dropped]), len(long)

    @staticmethod
    def _cut(
        policy: Encoder, prompts: EncodedPrompts, long: Sequence[int], limit: int
    ) -> EncodedPrompts:
        """Keep the end, after what the tokenizer begins every text with.

        Without its first token (`<bos>`) a model is off its distribution, and says nothing.
        """
        try:
            (empty,) = _encode(policy, PromptRows([""]))
        except UserError:  # an empty text becomes no tokens: there are none that go first
            empty = np.empty(0, np.int32)
        tokens = list(prompts.tokens)
        for place in long:
            row = tokens[place]
            head = 0
            while head < len(empty) and row[head] == empty[head]:
                head += 1
            if head >= limit:
                raise UserError(
                    f"data.max_prompt_tokens = {limit} leaves no room beside the {head} tokens "
                    "that the tokenizer begins every text with"
                )
            tokens[place] = np.concatenate([row[:head], row[len(row) - limit + head :]])
        return EncodedPrompts(prompts.ids, prompts.rows, tokens)
