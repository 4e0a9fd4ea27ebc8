r"""Exploitability from samples, where the responses cannot be listed.

Letters: B prompts, N scored responses, M opponents of each. All functions compute in float64.

With :math:`r(y) = P(y \succ \pi)` and :math:`h(y) = r(y) - \beta \log (\pi(y) / \mu(y))` the
exploitability is a gap of Jensen's inequality, for :math:`E_\pi r = 1/2`:

.. math:: e(\pi) = \beta \log E_\mu e^{r / \beta} + \beta KL(\pi \| \mu) - 1/2
                 = \beta \log E_\pi e^{h / \beta} - E_\pi h

At the equilibrium h is a constant. So where both terms are estimated from the same responses, the
error falls with e itself, and does not stay that of the divergence. No best response is trained.

**Who is scored.** Of the N responses a share :math:`\alpha` is drawn from the reference and the
rest from the policy, and each is weighted as if it were drawn from the mixture
:math:`q = \alpha \mu + (1 - \alpha) \pi` (multiple importance sampling with the balance heuristic,
Veach and Guibas, 1995). Both weights, :math:`\mu / q` and :math:`\pi / q`, are bounded. The
reference's responses find what the policy does not write any more, and the policy's are near the
best response where the policy is near the equilibrium.

**What they meet.** r is known by M opponents that are drawn from the policy. :math:`e^{r / \beta}`
at their mean answer would be too large, by a factor of about :math:`e^{v / 2 M \beta^2}` with v the
variance of an answer; `exponential_of_mean` has no bias. The opponents are a response's own, or
shared by all N responses, where an answer costs nothing once a text is read.

**What is left** is the bias of a logarithm, of the order 1/N, which a jackknife over the N
responses takes away, and 1/M of shared opponents, which the delta method does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Effective sample size of exp(r / beta) below which nothing is claimed: measured in docs/certify.md
LEAST_EFFECTIVE = 25.0


@dataclass(frozen=True, slots=True)
class ExploitabilityEstimates:
    """Exploitability of B prompts by samples.

    Args:
        value: estimate of e(pi) [B]; NaN where too few responses were judged.
        variance: of the estimate [B], by which responses and opponents were drawn.
        effective: effective sample size of the weights exp(r / beta) [B].
        kl: estimate of KL(pi || mu) in nats [B].
        judged: responses with a valid answer [B].
    """

    value: Tensor
    variance: Tensor
    effective: Tensor
    kl: Tensor
    judged: Tensor

    def times(self, factor: float) -> ExploitabilityEstimates:
        """Those of the game whose payoffs and beta are ``factor`` times as large."""
        return replace(self, value=factor * self.value, variance=factor**2 * self.variance)

    @property
    def known(self) -> Tensor:
        """Whether the samples can tell, bool [B]: beta is not too small for so many of them."""
        return known(self.value, self.variance, self.effective)


def known(value: Tensor, variance: Tensor, effective: Tensor) -> Tensor:
    """Whether estimates tell anything, by the fields of `ExploitabilityEstimates`, bool [B]."""
    return value.isfinite() & variance.isfinite() & (effective >= LEAST_EFFECTIVE)


def exponential_of_mean(answers: Tensor, beta: float, valid: Tensor | None = None) -> Tensor:
    r"""Estimate :math:`e^{E[x] / \beta}` from independent answers x, without bias.

    With :math:`z = (x - 1/2) / \beta` the mean over all subsets of k answers of the product of
    their z has the expectation :math:`E[z]^k` (a U-statistic, Hoeffding 1948). So

    .. math:: e^{1 / 2 \beta} \sum_{k=0}^M \frac{1}{k!} \binom{M}{k}^{-1} \sum_{|S| = k}
        \prod_{m \in S} z_m

    is the exponential series, but for the terms beyond M: `least_opponents` makes these small.
    Single values may be negative; nothing is clipped.

    Args:
        answers: in [0, 1], independent along the last dimension [..., M].
        beta: temperature, above 0.
        valid: which answers there are, bool [..., M]; None for all.

    Returns:
        the estimate [...]; meaningless where no answer is valid.
    """
    z = (answers.double() - 0.5) / beta
    terms = min(z.shape[-1], _terms(beta))
    order = torch.arange(terms + 1, dtype=z.dtype, device=z.device)
    series = z.new_zeros(*z.shape[:-1], terms + 1)  # of the answers so far, k-th term over k!
    series[..., 0] = 1
    seen = z.new_zeros(*z.shape[:-1], 1)
    for m in range(z.shape[-1]):
        here = None if valid is None else valid[..., m, None]
        number = seen + 1 if here is None else torch.where(here, seen + 1, seen)
        grown = series * ((number - order).clamp(min=0) / number.clamp(min=1))
        grown[..., 1:] += series[..., :-1] * z[..., m, None] / number.clamp(min=1)
        series = grown if here is None else torch.where(here, grown, series)
        seen = number
    return math.exp(0.5 / beta) * series.sum(-1)


def _terms(beta: float) -> int:
    """Terms of the exponential series at 1 / (2 beta), up to what rounding leaves of it."""
    return int(math.e * 0.5 / beta) + 30


def least_opponents(beta: float, remainder: float = 1e-3) -> int:
    r"""The least M, for which `exponential_of_mean` lacks no term that matters.

    Of :math:`e^c` with :math:`c = 1 / 2 \beta`, the largest there is, the terms beyond M are

    .. math:: \sum_{k > M} \frac{c^k}{k!} \le \frac{c^{M+1}}{(M+1)!} \frac{M + 2}{M + 2 - c}

    Args:
        beta: temperature, above 0.
        remainder: how small they are to be, as a share of it.
    """
    c = 0.5 / beta
    number = max(2, math.floor(c))
    while True:
        beyond = (number + 1) * math.log(c) - math.lgamma(number + 2)
        if beyond - math.log1p(-c / (number + 2)) - c < math.log(remainder):
            return number
        number += 1


def sampled_exploitability(
    log_ratio: Tensor,
    from_reference: int,
    answers: Tensor,
    beta: float,
    valid: Tensor | None = None,
    shared: bool = False,
) -> ExploitabilityEstimates:
    """Exploitability from N responses a prompt, and answers about M opponents of each.

    Args:
        log_ratio: log pi(y) - log mu(y) of the responses [B, N].
        from_reference: the first of the N are the reference's, so many; the others the policy's.
        answers: P(y_n > o_nm), with opponents drawn from the policy [B, N, M].
        beta: temperature of the game, above 0.
        valid: which answers could be had, bool [B, N, M]; None for all. A response without any
            leaves.
        shared: whether opponent m is the same for all N responses; else each has its own.
    """
    log_ratio, answers = log_ratio.double(), answers.double()
    if valid is None:
        valid = torch.ones_like(answers, dtype=torch.bool)
    answers = torch.where(valid, answers, 0.5)
    number = valid.sum(-1)
    there = number > 0
    payoff = torch.where(valid, answers, 0.0).sum(-1) / number.clamp(min=1)  # r [B, N]
    share = from_reference / log_ratio.shape[1]
    # mu / q and pi / q, without overflow.
    of_reference = 1 / (share + (1 - share) * log_ratio.exp())
    of_policy = 1 / (share * (-log_ratio).exp() + (1 - share))
    ratio = torch.where(of_policy > 0, of_policy * log_ratio, 0.0)
    grown = of_reference * exponential_of_mean(answers, beta, valid)
    columns = torch.stack([grown, of_policy, of_policy * payoff - beta * ratio, ratio], -1)
    # Absent ones leave without a trace, also where they are not finite.
    columns = torch.where(there[..., None], columns, 0.0)
    weight = _weight(there, from_reference)
    value, variance = _jackknife(columns, weight, there, from_reference, beta)
    mean = (weight[..., None] * columns).sum(1)
    if shared:
        bias, more = _of_opponents(columns * weight[..., None], answers, valid, payoff, beta)
        value, variance = value - bias, variance + more
    exponentials = columns[..., 0]
    effective = exponentials.sum(-1).square() / exponentials.square().sum(-1)
    return ExploitabilityEstimates(
        value, variance, effective, mean[:, 3] / mean[:, 1], there.sum(-1)
    )


def _gap(mean: Tensor, beta: float) -> Tensor:
    """The gap [...] of means [..., 4] of mu/q exp(r/beta), pi/q, and pi/q h."""
    return beta * (mean[..., 0] / mean[..., 1]).log() - mean[..., 2] / mean[..., 1]


def _parts(num: int, from_reference: int) -> list[slice]:
    """The responses of the reference and those of the policy, where there are any."""
    parts = [slice(0, from_reference), slice(from_reference, num)]
    return [part for part in parts if part.stop > part.start]


def _weight(there: Tensor, from_reference: int) -> Tensor:
    """Weight of each response in a mean [B, N]: the reference's have their share together."""
    weight = torch.zeros(there.shape, dtype=torch.float64, device=there.device)
    for part in _parts(there.shape[1], from_reference):
        share = (part.stop - part.start) / there.shape[1]
        # Of none it is infinite, times 0: the estimate is no number then.
        weight[:, part] = share * there[:, part] / there[:, part].sum(-1, keepdim=True)
    return weight


def _jackknife(
    columns: Tensor, weight: Tensor, there: Tensor, from_reference: int, beta: float
) -> tuple[Tensor, Tensor]:
    """The gap without its bias of order 1/N, and its variance [B].

    Each response is left out once, with the opponents that it met, and the others of its player
    take its weight (a stratified jackknife).

    Args:
        columns: what `_gap` takes means of [B, N, 4].
        weight: of each response [B, N].
        there: which responses count, bool [B, N].
        from_reference: the first are the reference's, so many.
        beta: temperature.
    """
    mean = (weight[..., None] * columns).sum(1, keepdim=True)
    whole = _gap(mean[:, 0], beta)
    value, variance = whole.clone(), torch.zeros_like(whole)
    for part in _parts(columns.shape[1], from_reference):
        number = there[:, part].sum(-1).double()  # n [B]
        own = (weight[:, part, None] * columns[:, part]).sum(1, keepdim=True)
        share = weight[:, part].sum(-1)[:, None, None]
        n = number[:, None, None]
        rest = (own * n - share * columns[:, part]) / (n - 1)  # NaN of one alone
        left_out = _gap(mean - own + rest, beta)
        left_out = torch.where(there[:, part], left_out, 0.0)
        centre = left_out.sum(-1) / number
        apart = torch.where(there[:, part], left_out - centre[:, None], 0.0)
        value = value - (number - 1) * (centre - whole)
        variance = variance + (number - 1) / number * apart.square().sum(-1)
    return value, variance


def _of_opponents(
    weighted: Tensor, answers: Tensor, valid: Tensor, payoff: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Bias and variance [B] that opponents bring into the gap that all responses share.

    Opponent m moves r by P(y_n > o_m) - r: to first order the gap by the mean of that under the
    best response, less the mean under the policy.

    Args:
        weighted: columns of `_gap` with their weights [B, N, 4].
        answers: P(y_n > o_m) [B, N, M].
        valid: which there are, bool [B, N, M].
        payoff: r, the mean of the valid ones [B, N].
        beta: temperature.
    """
    moved = torch.where(valid, answers - payoff[..., None], 0.0)
    best, own = (
        (column / column.sum(1, keepdim=True))[:, None] @ moved
        for column in (weighted[..., 0], weighted[..., 1])
    )
    number = valid.any(1).sum(-1).double()
    scale = number * (number - 1)
    bias = -best.square().sum((1, 2)) / scale / (2 * beta)
    return bias, (best - own).square().sum((1, 2)) / scale
