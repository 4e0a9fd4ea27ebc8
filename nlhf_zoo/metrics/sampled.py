"""The mean over prompts of exploitability from samples, and its intervals."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import final

import torch
from torch import Tensor
from torchmetrics import Metric

from nlhf_zoo.solvers.sampled import known

_LEVEL = 0.95


@final
class SampledExploitability(Metric):
    r"""Mean of the exploitability of prompts, by `nlhf_zoo.solvers.sampled_exploitability`.

    It has two intervals at 95 %. That for the mean over *these* prompts has the error of what was
    drawn alone, :math:`\sum_b \sigma_b^2 / B^2`. That for the mean over the law that they come from
    has the variance between their estimates, :math:`s^2 / B`, which holds the other one, and
    Student's quantile of B - 1 degrees of freedom. Its ends are NaN of one prompt.

    A prompt with too few judged responses for an estimate is counted, and in no mean. Where samples
    cannot tell the exploitability of a prompt they cannot tell the mean: ``unknown`` counts these.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = False

    total: Tensor
    squares: Tensor
    variance: Tensor
    divergence: Tensor
    prompts: Tensor
    unknown: Tensor
    left_out: Tensor
    effective: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "squares", "variance", "divergence"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("prompts", "unknown", "left_out"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        least = torch.full((), torch.inf, dtype=torch.float64)
        self.add_state("effective", least, dist_reduce_fx="min")

    def update(self, value: Tensor, variance: Tensor, effective: Tensor, kl: Tensor) -> None:
        """Take in B prompts: the estimate, its variance, ESS and divergence of each [B].

        They are fields of `nlhf_zoo.solvers.ExploitabilityEstimates`.
        """
        there = ~(value.isnan() | variance.isnan())
        self.left_out += (~there).sum()
        self.unknown += (~known(value, variance, effective)).sum()
        values = value[there].double()
        self.total += values.sum()
        self.squares += values.square().sum()
        self.variance += variance[there].sum()
        self.divergence += kl[there].sum()
        self.prompts += len(values)
        if len(effective):
            least = effective.double().nan_to_num(nan=0.0).min()
            self.effective = torch.minimum(self.effective, least)

    def compute(self) -> dict[str, Tensor]:
        """All figures of the prompts since the last reset, [] each.

        ``mean``; ``low`` and ``high`` for these prompts, ``low_of_law`` and ``high_of_law`` for
        where they come from; ``ess``, the least effective sample size of a prompt; ``kl``, the mean
        in nats; ``prompts`` in the mean, ``unknown`` and ``left_out`` ones.
        """
        number = self.prompts.double()
        mean = self.total / number
        error = self.variance.sqrt() / number
        half = NormalDist().inv_cdf((1 + _LEVEL) / 2) * error
        of_law = half.new_full((), math.nan)
        if number > 1:
            from scipy.stats import t as student  # late: it takes long

            between = (self.squares - number * mean.square()).clamp(min=0) / (number - 1)
            # What was drawn is in that variance; with few prompts it may seem to be less.
            both = torch.maximum((between / number).sqrt(), error)
            of_law = float(student.ppf((1 + _LEVEL) / 2, float(number) - 1)) * both
        return {
            "mean": mean,
            "low": mean - half,
            "high": mean + half,
            "low_of_law": mean - of_law,
            "high_of_law": mean + of_law,
            "ess": self.effective,
            "kl": self.divergence / number,
            "prompts": number,
            "unknown": self.unknown.double(),
            "left_out": self.left_out.double(),
        }
