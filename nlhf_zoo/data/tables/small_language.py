"""The small language: all words of three letters, and a preference with a cycle over them."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError

LETTERS = "abcdefgh"
LENGTH = 3
PROMPTS = ("ab", "cd", "ef", "gh")


def words(num_letters: int = len(LETTERS), length: int = LENGTH) -> list[str]:
    """All responses, in the order of a preference's rows."""
    return ["".join(word) for word in itertools.product(LETTERS[:num_letters], repeat=length)]


def prompts(num_letters: int = len(LETTERS)) -> list[str]:
    """The prompts that can be written with so many letters."""
    return [prompt for prompt in PROMPTS if set(prompt) <= set(LETTERS[:num_letters])]


def preference(
    quality: float, cycle: float, seed: int, num_letters: int = len(LETTERS), length: int = LENGTH
) -> Tensor:
    r"""P(y > y' | x) of the small language, float64 [C, N, N] for C prompts and N words.

    .. math:: P(y > y') = \sigma(u_x(y) - u_x(y') + c \sin(2\pi (\phi(y) - \phi(y')) / 3))

    u_x is transitive: a sum over the places of a weight of the letter there, normal numbers of
    standard deviation ``quality`` that ``seed`` draws. phi is the sum of the letters' numbers
    modulo 3, so that each third of the words beats the next one; c is the strength of this
    ``cycle``.
    """
    scores = utility(quality, seed, num_letters, length)
    phase = 2 * math.pi / 3 * (_numbers(num_letters, length).sum(-1) % 3).double()
    difference = scores[:, :, None] - scores[:, None, :]
    return torch.sigmoid(difference + cycle * torch.sin(phase[:, None] - phase[None, :]))


def utility(
    quality: float, seed: int, num_letters: int = len(LETTERS), length: int = LENGTH
) -> Tensor:
    """The transitive part u_x(y) of the small language, float64 [C, N]."""
    rng = torch.Generator().manual_seed(seed)
    shape = (len(prompts(num_letters)), length, num_letters)
    weights = quality * torch.randn(*shape, generator=rng, dtype=torch.float64)
    numbers = _numbers(num_letters, length)
    total = sum(weights[:, place, numbers[:, place]] for place in range(length))
    assert isinstance(total, Tensor)
    return total


def _numbers(num_letters: int, length: int) -> Tensor:
    """The numbers of each word's letters [N, length]."""
    return torch.tensor([*itertools.product(range(num_letters), repeat=length)])


def refuse_size(num_letters: int, length: int) -> None:
    """Refuse a language that is none, or too large to list."""
    if not (2 <= num_letters <= len(LETTERS) and 1 <= length <= 4):
        raise UserError(
            f"the small language has 2 to {len(LETTERS)} letters and words of 1 to 4, but "
            f"num_letters is {num_letters} and length is {length}"
        )
