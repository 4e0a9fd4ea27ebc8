"""The law of the next token of a mixture, and a token drawn from it by one uniform number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.policies.base import mix
from nlhf_zoo.policies.language_model.generation import restrict, warp
from nlhf_zoo.records import Decoding


@dataclass(slots=True)
class NextToken:
    """The law of the next token: the mixture's, restricted and decoded.

    Args:
        weights: of the players.
        decoding: how a token is drawn from the mixture's law.
        ends: tokens that end a response [E].
        min_new_tokens: tokens before which none of `ends` is drawn.
    """

    weights: Sequence[float]
    decoding: Decoding
    ends: Tensor
    min_new_tokens: int
    _warped: Any = field(init=False)

    def __post_init__(self) -> None:
        self._warped = None if self.decoding.is_plain else warp(self.decoding)

    def __call__(self, logits: Sequence[Tensor], number: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of the whole law, and probability of what is drawn; [n, V] each.

        Args:
            logits: of each player [n, V].
            number: of the token in its response, the first being 0 [1].
        """
        log_prob = mix([of_player.float() for of_player in logits], self.weights)
        if self.min_new_tokens:
            log_prob = restrict(log_prob, number < self.min_new_tokens, self.ends)
        if self._warped is None:
            return log_prob, log_prob.exp()
        return log_prob, self._warped(log_prob).softmax(-1)


def invert(probability: Tensor, uniform: Tensor) -> Tensor:
    """The token [n] at which the distribution function of each row passes ``uniform`` [n].

    The function is summed in blocks of about sqrt(V) tokens, in float64: first over blocks, then
    within the one that is met. There is no cumulative sum, whose result on a GPU is not the same
    in each run, nothing that waits for the device, and one random number a row. What has
    probability 0 is never drawn, and no row need sum to exactly 1.

    Args:
        probability: [n, V].
        uniform: in [0, 1), float64.
    """
    vocabulary = probability.shape[1]
    width = 2 ** max(1, round(math.log2(vocabulary) / 2))
    padded = torch.nn.functional.pad(probability, (0, -vocabulary % width))
    blocks = padded.unflatten(1, (-1, width))
    sums = blocks.sum(-1, dtype=torch.float64)
    below = sums @ _ones_up_to(sums)
    at = _within(uniform * below[:, -1], below[:, -1])
    block = _first(below, sums, at)
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, width))[:, 0].double()
    before = (below - sums).gather(1, block[:, None])[:, 0]
    within = inside @ _ones_up_to(inside)
    offset = _first(within, inside, _within(at - before, within[:, -1]))
    token: Tensor = block * width + offset
    return token.clamp(max=vocabulary - 1)


def _ones_up_to(rows: Tensor) -> Tensor:
    """The matrix [N, N] that sums [n, N] up to and with each column."""
    return torch.ones(rows.shape[1], rows.shape[1], dtype=rows.dtype, device=rows.device).triu()


def _within(at: Tensor, total: Tensor) -> Tensor:
    """Rounding must not lead to a place below 0 or to the total itself, where there is nothing."""
    return at.clamp(min=0).minimum(total.nextafter(torch.zeros_like(total)))


def _first(below: Tensor, mass: Tensor, at: Tensor) -> Tensor:
    """The first column with mass whose sum passes ``at`` [n]; 0 where there is none, as of NaN."""
    return ((below > at[:, None]) & (mass > 0)).to(torch.uint8).argmax(-1)
