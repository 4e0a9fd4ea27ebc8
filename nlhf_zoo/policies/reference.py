"""Distributions over the actions of a table: references, and starts that differ from them."""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.data.tables.files import read_distribution
from nlhf_zoo.errors import UserError


class Reference(ABC):
    """A distribution over the actions of each prompt."""

    @abstractmethod
    def logits(self, support: Tensor) -> Tensor:
        """Unnormalised log-probabilities, float64 [C, N].

        Args:
            support: which actions exist, bool [C, N].
        """

    def log_prob(self, support: Tensor) -> Tensor:
        """Log-probabilities, float64 [C, N]; -inf for actions that do not exist."""
        return self.logits(support).masked_fill(~support, -torch.inf).log_softmax(-1)


class UniformReference(Reference):
    """All actions of a prompt are equally probable."""

    @override
    def logits(self, support: Tensor) -> Tensor:
        return torch.zeros(support.shape, dtype=torch.float64)


class NormalReference(Reference):
    """Logits are independent normal numbers.

    Args:
        scale: their standard deviation.
        seed: of their own random stream; None takes the run's seed.
    """

    def __init__(self, scale: float = 1.0, seed: int | None = None) -> None:
        if not (math.isfinite(scale) and scale >= 0):
            raise UserError(f"scale must be a finite number of at least 0, but it is {scale}")
        self.scale = scale
        self.seed = seed

    @override
    def logits(self, support: Tensor) -> Tensor:
        seed = torch.initial_seed() if self.seed is None else self.seed
        # Not the stream that a generated game of that seed draws from: they must be unrelated.
        rng = torch.Generator().manual_seed((seed + zlib.crc32(b"reference")) % 2**63)
        return self.scale * torch.randn(support.shape, generator=rng, dtype=torch.float64)


class GivenReference(Reference):
    """The probabilities are given, one list for all prompts.

    Args:
        probabilities: one for each action, in the oracle's order; all above 0, summing to 1.
    """

    def __init__(self, probabilities: list[float]) -> None:
        self.probabilities = torch.tensor(probabilities, dtype=torch.float64)

    @override
    def logits(self, support: Tensor) -> Tensor:
        return _log(self.probabilities, support, "the reference's probabilities")


class FileReference(Reference):
    """The probabilities are in a file.

    Args:
        path: .npy or .csv with probabilities [N], or [C, N] for several prompts.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.probabilities = read_distribution(path, "reference")

    @override
    def logits(self, support: Tensor) -> Tensor:
        return _log(self.probabilities, support, str(self.path))


def _log(probabilities: Tensor, support: Tensor, where: str) -> Tensor:
    if probabilities.shape[-1] != support.shape[-1] or (
        probabilities.dim() == 2 and len(probabilities) != len(support)
    ):
        raise UserError(
            f"{where} has shape {[*probabilities.shape]}, but the game has {support.shape[0]} "
            f"prompts of {support.shape[1]} actions: give one probability for each action"
        )
    probabilities = probabilities.expand(support.shape)
    inside = torch.where(support, probabilities, torch.ones_like(probabilities))
    if not (torch.isfinite(inside) & (inside > 0)).all():
        raise UserError(f"{where} must be above 0 for every action of the game")
    total = torch.where(support, probabilities, torch.zeros_like(probabilities)).sum(-1)
    if not torch.allclose(total, torch.ones_like(total), atol=1e-6, rtol=0):
        raise UserError(f"{where} must sum to 1 over the actions, but sums to {total.min():.6g}")
    return probabilities.log()
