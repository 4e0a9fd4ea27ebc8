"""Numbers that say what a response is like, for models that are fitted while a run is played."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import UserError


class TextFeatures(ABC):
    """Features of a response to a prompt.

    Attributes:
        size: how many numbers a response has, D.
    """

    size: int

    @abstractmethod
    def __call__(self, texts: Sequence[tuple[str, str]]) -> Tensor:
        """The features of responses.

        Args:
            texts: n prompts, each with a response.

        Returns:
            float64 [n, D], the same for the same texts in every process.
        """


@final
class HashedNgrams(TextFeatures):
    """Counts of runs of letters, hashed to few places and scaled to length 1.

    Each run of 1 to ``longest`` letters adds 1 or -1 to one place (a signed hash, so that runs that
    share a place cancel in the mean). They see wording and spelling, and no meaning: give a class
    of your own, which embeds texts by a model, where that is what people judge by.

    Args:
        size: places.
        longest: letters of the longest run.
        of_prompt: whether the places of a run depend on the prompt; nothing is then learnt from one
            prompt for another.

    Raises:
        UserError: a number is below 1.
    """

    def __init__(self, size: int = 24, longest: int = 3, of_prompt: bool = False) -> None:
        for name, number in (("size", size), ("longest", longest)):
            if number < 1:
                raise UserError(f"HashedNgrams.{name} must be at least 1, but it is {number}")
        self.size = size
        self.longest = longest
        self.of_prompt = of_prompt

    @override
    def __call__(self, texts: Sequence[tuple[str, str]]) -> Tensor:
        rows = [self._counts(prompt, response) for prompt, response in texts]
        counts = torch.tensor(rows, dtype=torch.float64).reshape(-1, self.size)
        return torch.nn.functional.normalize(counts, dim=-1)

    def _counts(self, prompt: str, response: str) -> list[int]:
        start = zlib.crc32(prompt.encode("utf-8", "surrogatepass")) if self.of_prompt else 0
        counts = [0] * self.size
        for length in range(1, self.longest + 1):
            for at in range(len(response) - length + 1):
                run = response[at : at + length].encode("utf-8", "surrogatepass")
                place, sign = divmod(zlib.crc32(run, start), 2)
                counts[place % self.size] += 1 if sign else -1
        return counts
