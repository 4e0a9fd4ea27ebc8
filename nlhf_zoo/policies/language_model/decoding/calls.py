"""Calls of a model for rows of one player, or of several, and the cache that such a call has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.policies.language_model.decoding.adapters import FusedAdapters
from nlhf_zoo.policies.language_model.decoding.cache import Place, RowCache
from nlhf_zoo.policies.language_model.players import Players


@dataclass(frozen=True, slots=True)
class Call:
    """Players whose rows stand in one batch, one player's after the other's, with their cache."""

    players: Players
    names: tuple[str, ...]
    adapters: FusedAdapters | None  # None leaves the adapters to peft
    cache: RowCache
    mask: Tensor  # of what the cache may hold [P n, most]

    def logits(self, tokens: Tensor, positions: Tensor, held: int) -> list[Tensor]:
        """Logits [n, V] of each player behind the last of these tokens [n, q].

        Args:
            tokens: the next ones of each row.
            positions: of these tokens [n, q].
            held: tokens that the attention may see, these among them.
        """
        copies = len(self.names)
        given: dict[str, Any] = {
            "input_ids": tokens.repeat(copies, 1),
            "attention_mask": self.mask[:, :held],
            "position_ids": positions.repeat(copies, 1),
            "past_key_values": self.cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        first = self.names[0]
        if self.adapters is not None:
            self.adapters.play(self.names)
            output = self.players.language_model(first)(**given)
        else:
            with self.players.playing(self.names, len(tokens)) as further:
                output = self.players.module(first)(**given, **further)
        last: Tensor = output.logits[:, -1]
        return list(last.split(len(tokens)))

    def select(self, index: Tensor, rows: int, capacity: int) -> Call:
        """The call for some of its n ``rows``, the same ones of each player."""
        of_all = self._of_all(index, rows)
        cache = self.cache.select(of_all, capacity)
        room = max(0, capacity - self.mask.shape[1])
        mask = torch.nn.functional.pad(self.mask.index_select(0, of_all), (0, room))
        return replace(self, cache=cache, mask=mask)

    def first(self, rows: int) -> Call:
        """The call for n ``rows`` in the first rows of this one's buffers."""
        of_all = rows * len(self.names)
        return replace(self, cache=self.cache.first(of_all), mask=self.mask[:of_all])

    def load(self, other: Call, index: Tensor, rows: int) -> None:
        """Take over as many of another call's n ``rows`` as there are here, in the same tensors."""
        of_all = self._of_all(index, rows)
        used = other.cache.place.at
        seen = other.mask[:, :used].index_select(0, of_all)  # first: the two may share a memory
        self.mask.zero_()
        self.mask[:, :used] = seen
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            layer: Any = mine
            layer.load(theirs, of_all, used)
        self.cache.place.at = used

    def _of_all(self, index: Tensor, rows: int) -> Tensor:
        """The index of some of n rows of each player, in the batch of all players."""
        return torch.cat([index + number * rows for number in range(len(self.names))])


def calls_of(
    players: Players,
    adapters: FusedAdapters | None,
    together: Sequence[Sequence[str]],
    mask: Tensor,
    most: int,
) -> list[Call]:
    """Calls that have read nothing yet, for rows with this mask of their prompts [n, S].

    Args:
        players: of the model.
        adapters: that apply; None leaves them to peft.
        together: names of the players of each call.
        mask: True where a prompt is not padded.
        most: tokens of a prompt and its response.
    """
    made = []
    for names in together:
        room = mask.new_ones(len(mask), most - mask.shape[1])
        whole = torch.cat([mask, room], 1).long().repeat(len(names), 1)
        cache = RowCache(Place(mask.shape[1], most))
        made.append(Call(players, tuple(names), adapters, cache, whole))
    return made
