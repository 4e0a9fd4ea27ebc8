"""Prompts as the tokens that a policy reads, no longer than they may be."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from nlhf_zoo.data.texts.row_source import RowSource
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
    """N prompts with the tokens that a policy reads."""

    prompts: Prompts  # as they were read
    tokens: list[NDArray[np.int32]]  # N lists of token ids, without padding

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, places: Sequence[int]) -> EncodedPrompts:
        """The prompts at some places."""
        return EncodedPrompts(self.prompts.take(places), [self.tokens[i] for i in places])

    def batch(self, places: Sequence[int]) -> Prompts:
        """The prompts at some places as a batch, padded on the left to the longest."""
        rows = [torch.from_numpy(self.tokens[place]).long() for place in places]
        tokens = pad_sequence(rows, batch_first=True, padding_side="left")
        every = [torch.ones_like(row, dtype=torch.bool) for row in rows]
        mask = pad_sequence(every, batch_first=True, padding_side="left")
        return replace(self.prompts.take(places), tokens=tokens, mask=mask)

    def longest_first(self) -> list[int]:
        """Places of the prompts by falling number of tokens, equal ones in their own order."""
        return sorted(range(len(self)), key=lambda place: -len(self.tokens[place]))

    def fingerprint(self) -> str:
        """Equal for equal prompts in equal order, and for no others."""
        digest = hashlib.sha256()
        texts = self.prompts.text or ()
        for number, text, row in zip(self.prompts.ids.tolist(), texts, self.tokens, strict=True):
            digest.update(f"{number} {len(text.encode())} {len(row)} {text}".encode())
            digest.update(row.tobytes())
        return digest.hexdigest()


def encode(
    policy: Encoder, prompts: Prompts, source: RowSource, shown: bool = False, offset: int = 0
) -> EncodedPrompts:
    """Let a policy encode the prompts of a source, the number of whose first row is ``offset``.

    ``shown`` shows a progress bar where it takes longer than two seconds.

    Raises:
        UserError: the policy reads no text, or refuses a prompt.
    """
    num = len(prompts)
    tokens: list[NDArray[np.int32]] = []
    with tqdm(
        total=num, desc="Encoding", unit=" prompts", delay=2, leave=False, disable=not shown
    ) as bar:
        for first in range(0, num, _CHUNK):
            places = range(first, min(first + _CHUNK, num))
            try:
                tokens += _encode(policy, prompts.take(places))
            except UserError:
                _refuse_the_first(policy, prompts, places, source, offset)
                raise
            bar.update(len(places))
    for place, row in enumerate(tokens):
        if not len(row):
            where = source.where(int(prompts.ids[place]) - offset)
            raise UserError(f"{where} becomes no tokens: take it out")
    return EncodedPrompts(prompts, tokens)


def _encode(policy: Encoder, prompts: Prompts) -> list[NDArray[np.int32]]:
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
    policy: Encoder, prompts: Prompts, places: Sequence[int], source: RowSource, offset: int
) -> None:
    """Say which of several prompts a policy refuses, where it does not refuse them all."""
    refused: dict[int, UserError] = {}
    for place in places:
        try:
            _encode(policy, prompts.take([place]))
        except UserError as error:
            refused[place] = error
    if 0 < len(refused) < len(places):
        first, why = next(iter(refused.items()))
        where = source.where(int(prompts.ids[first]) - offset)
        raise UserError(f"{where} cannot be encoded: {why}") from why


def limited(
    policy: Encoder,
    encoded: EncodedPrompts,
    source: RowSource,
    limit: int,
    too_long: TooLong,
    offset: int = 0,
) -> tuple[EncodedPrompts, int]:
    """The prompts of a source, none of more than ``limit`` tokens, and how many were too long.

    The number of the source's first row is ``offset``.

    Raises:
        UserError: one is too long where that is refused, or none is left.
    """
    long = [place for place, row in enumerate(encoded.tokens) if len(row) > limit]
    if not long:
        return encoded, 0
    if too_long == "truncate":
        return _truncated(policy, encoded, long, limit), len(long)
    count = (
        f"{len(long)} of {len(encoded)} prompts of {source.path} have more than "
        f"data.max_prompt_tokens = {limit} tokens"
    )
    if too_long == "refuse":
        first = source.where(int(encoded.prompts.ids[long[0]]) - offset)
        ways = "drop or truncate" if encoded.prompts.conversations is None else "drop"
        raise UserError(
            f"{count}, the first of them {first} with "
            f"{len(encoded.tokens[long[0]])}: raise it, or set data.too_long to {ways}"
        )
    if len(long) == len(encoded):
        raise UserError(f"all {count}")
    short = [place for place, row in enumerate(encoded.tokens) if len(row) <= limit]
    return encoded.take(short), len(long)


def _truncated(
    policy: Encoder, encoded: EncodedPrompts, long: Sequence[int], limit: int
) -> EncodedPrompts:
    """Keep the end, after what the tokenizer begins every text with.

    Without its first token (`<bos>`) a model is off its distribution, and says nothing.
    """
    try:
        (empty,) = _encode(policy, Prompts(torch.zeros(1, dtype=torch.long), text=[""]))
    except UserError:  # an empty text becomes no tokens: there are none that go first
        empty = np.empty(0, np.int32)
    tokens = list(encoded.tokens)
    for place in long:
        row = tokens[place]
        head = 0
        while head < len(empty) and row[head] == empty[head]:
            head += 1
        if head >= limit:
            raise UserError(
                f"data.max_prompt_tokens = {limit} leaves no room beside the {head} tokens that "
                "the tokenizer begins every text with"
            )
        tokens[place] = np.concatenate([row[:head], row[len(row) - limit + head :]])
    return replace(encoded, tokens=tokens)
