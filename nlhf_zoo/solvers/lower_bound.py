r"""A lower bound of a policy's exploitability by the draws of any response to it.

For every policy :math:`\pi'`

.. math:: e(\pi) \ge P(\pi' \succ \pi) - \beta KL(\pi' \| \mu) + \beta KL(\pi \| \mu) - 1/2,

with equality at the best response alone. As :math:`P(\pi \succ \pi) = 1/2` the right side is a
difference of one figure of two policies,

.. math:: E_{y \sim \pi', o \sim \pi}\Big[P(y \succ o) - \tfrac12
              - \beta \log \frac{\pi'(y)}{\mu(y)}\Big]
          - E_{y \sim \pi, o \sim \pi}\Big[P(y \succ o) - \tfrac12
              - \beta \log \frac{\pi(y)}{\mu(y)}\Big].

**A draw** is a response of each, and an opponent o of the policy's that both meet. Each response
stands for both policies, weighted as if it were drawn from their mixture
:math:`q = (\pi' + \pi) / 2` (multiple importance sampling with the balance heuristic, Veach and
Guibas, 1995): with :math:`d = \log (\pi' / \pi)`, :math:`\pi' / q = 2 \sigma(d)` and
:math:`\pi / q = 2 \sigma(-d)`,

.. math:: z = \sum_{y \in \{y', y\}} \tanh(d / 2) \big(P(y \succ o) - \tfrac12\big)
              - \beta \Big(\sigma(d) \log \frac{\pi'(y)}{\mu(y)}
              - \sigma(-d) \log \frac{\pi(y)}{\mu(y)}\Big).

It is the right side in the mean, and there is no logarithm of a mean, so that the mean of any
number of draws is unbiased. The weights are bounded, and where the two policies are one z is 0: its
spread falls with their distance, as near the equilibrium, and not with the answers alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """A mean over prompts, and intervals for it.

    Args:
        mean: of the prompts' means.
        low: end of the interval for these very prompts, by the spread of the draws to each.
        high: the other end.
        low_of_law: end of the interval for the law that the prompts are drawn from, which holds the
            spread between prompts as well; NaN of fewer than two prompts.
        high_of_law: the other end.
    """

    mean: float
    low: float
    high: float
    low_of_law: float
    high_of_law: float


def bound_of_draws(
    preference: Tensor,
    response: Tensor,
    policy: Tensor,
    beta: float,
    valid: Tensor | None = None,
    payoff_bound: float = 0.5,
) -> Tensor:
    """The bound by each draw, z of this module [...], in float64.

    An answer that could not be had counts as the one that is worst for the response: whatever it
    would have been, the mean is no more than the bound.

    Args:
        preference: P(y > o) of the response's y and the policy's [..., 2].
        response: log pi'(y) - log mu(y) of both [..., 2].
        policy: log pi(y) - log mu(y) of both [..., 2].
        beta: temperature of the game.
        valid: which answers could be had, bool [..., 2]; None for all.
        payoff_bound: largest distance of an answer from 1/2; more than 1/2 of payoffs that are no
            preferences.
    """
    response, policy = response.double(), policy.double()
    difference = response - policy
    weight, preference = (difference / 2).tanh(), preference.double()
    if valid is not None:
        worst = 0.5 - payoff_bound * weight.sign()
        preference = torch.where(valid, preference, worst)
    costs = [
        torch.where(share > 0, share * ratio, 0.0)  # of what one of them never plays
        for share, ratio in ((difference.sigmoid(), response), ((-difference).sigmoid(), policy))
    ]
    return (weight * (preference - 0.5) - beta * (costs[0] - costs[1])).sum(-1)


def mean_interval(draws: Tensor, level: float = 0.95) -> MeanInterval:
    r"""The mean over prompts of the means of independent draws, with two intervals.

    For these prompts: Student's, with the variance :math:`\sum_b s_b^2 / (n B^2)` of a mean of
    independent strata and the degrees of freedom of Welch and Satterthwaite (1946). For the law of
    the prompts: Student's of the B means, which are independent, and spread by both. Each is exact
    for normal draws, and holds up to the central limit theorem for others: a log-ratio has no bound
    by which a distribution-free interval could go.

    Args:
        draws: n independent draws for each of B prompts [B, n], n at least 2.
        level: share of repetitions in which an interval holds its mean; an end alone is on the
            wrong side in half of the others.

    Raises:
        ValueError: one draw a prompt says nothing of its spread.
    """
    from scipy.stats import t as student  # late: it takes long

    num_prompts, num = draws.shape
    if num < 2:
        raise ValueError(f"an interval needs at least 2 draws a prompt, not {num}")
    draws = draws.double()
    means = draws.mean(-1)
    mean, errors = means.mean().item(), draws.var(-1) / num  # squared, of each prompt's mean
    error = errors.mean().item() / num_prompts
    freedom = errors.sum().square() / errors.square().sum() * (num - 1) if error else math.inf
    half = float(student.ppf((1 + level) / 2, float(freedom))) * math.sqrt(error)
    of_law = math.nan
    if num_prompts > 1:
        quantile = float(student.ppf((1 + level) / 2, num_prompts - 1))
        of_law = quantile * math.sqrt(means.var().item() / num_prompts)
    return MeanInterval(mean, mean - half, mean + half, mean - of_law, mean + of_law)
