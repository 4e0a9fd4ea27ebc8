"""Metrics of preference models: thin classes over functions of `nlhf_zoo.solvers.preference`.

Their states are sums, so that processes may see different numbers of pairs.
"""

from __future__ import annotations

from abc import ABC

import torch
from torch import Tensor
from torchmetrics import Metric

from nlhf_zoo.solvers import preference as functions


class PairMean(Metric, ABC):
    """Mean over pairs of a figure of each, NaN left out; NaN where there is none.

    A subclass declares ``higher_is_better`` and has an ``update`` that hands one value a pair to
    `add`.
    """

    is_differentiable = False
    full_state_update = False

    sum: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def add(self, values: Tensor) -> None:
        """Take in one value a pair, of any shape."""
        values = values.double()
        self.sum += values.nansum()
        self.count += (~values.isnan()).sum()

    def compute(self) -> Tensor:
        """The mean over all pairs since the last reset []."""
        return self.sum / self.count


class PreferenceAccuracy(PairMean):
    """Share of pairs whose winner is predicted; see `nlhf_zoo.solvers.preference.correct`."""

    higher_is_better = True

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Take in B pairs: the predicted P(a > b), and its label or probability [B]."""
        self.add(functions.correct(probability, target))


class PreferenceLogLoss(PairMean):
    """Cross-entropy in nats; see `nlhf_zoo.solvers.preference.log_loss`."""

    higher_is_better = False

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Take in B pairs: the predicted P(a > b), and its label or probability [B]."""
        self.add(functions.log_loss(probability, target))


class FlipRate(PairMean):
    """Share of pairs whose winner changes with the order in which they are shown."""

    higher_is_better = False

    def update(self, forward: Tensor, backward: Tensor) -> None:
        """Take in B pairs: P(a > b) as told with a first, and P(b > a) as told with b first [B]."""
        self.add(functions.flipped(forward, backward))


class SymmetryError(PairMean):
    """|P(a > b) + P(b > a) - 1|, mean and maximum over pairs."""

    higher_is_better = False

    max: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("max", torch.full((), -torch.inf, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, forward: Tensor, backward: Tensor) -> None:
        """Take in B pairs: P(a > b) as told with a first, and P(b > a) as told with b first [B]."""
        error = functions.asymmetry(forward, backward).abs()
        self.add(error)
        self.max = torch.cat([error[~error.isnan()].flatten(), self.max[None]]).amax()

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]  # two figures
        """``mean`` and ``max`` over all pairs since the last reset; NaN where there is none."""
        most = self.max.masked_fill(self.count == 0, torch.nan)
        return {"mean": self.sum / self.count, "max": most}


class CalibrationError(Metric):
    """Expected calibration error; see `nlhf_zoo.solvers.preference.calibration_error`.

    Args:
        num_bins: of the confidence, over [1/2, 1]. Guo et al. (2017) have 15 over [0, 1].
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    bins: Tensor

    def __init__(self, num_bins: int = 10) -> None:
        super().__init__()
        if num_bins < 1:
            raise ValueError(f"num_bins must be at least 1, but it is {num_bins}")
        self.num_bins = num_bins
        zeros = torch.zeros(3, num_bins, dtype=torch.float64)
        self.add_state("bins", zeros, dist_reduce_fx="sum")

    def update(self, probability: Tensor, target: Tensor) -> None:
        """Take in B pairs: the predicted P(a > b), and its label or probability [B]."""
        self.bins += functions.calibration_bins(probability, target, self.num_bins)

    def compute(self) -> Tensor:
        """The error over all pairs since the last reset []."""
        return functions.calibration_error(self.bins)


class CyclicTriples(Metric):
    """Share of triples that are cycles; see `nlhf_zoo.solvers.preference.cyclic_triples`.

    It says what a preference can express, and is neither good nor bad.
    """

    higher_is_better = None
    is_differentiable = False
    full_state_update = False

    cyclic: Tensor
    triples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("cyclic", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("triples", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preference: Tensor, valid: Tensor | None = None) -> None:
        """Take in the responses to B prompts: P [B, N, N], and where it is valid.

        ``valid`` is bool [B, N, N], None for all.
        """
        cyclic, triples = functions.cyclic_triples(preference, valid)
        self.cyclic += cyclic.sum()
        self.triples += triples.sum()

    def compute(self) -> Tensor:
        """The share over all prompts since the last reset []; NaN without triples."""
        return self.cyclic / self.triples
