r"""Pairwise GRPO: the policy gradient in self-play, with the group's win rate as the reward.

    y_1, ..., y_K ~ pi:   r_k = mean over the group of P(y_k > y_j)              arXiv 2401.04056
    g = E grad log pi(y_k) [r_k - beta log(pi/mu)(y_k) - baseline of the others]

The exact population update is mirror descent, as of online IPO,

    log pi_{t+1} = (1 - eta beta) log pi_t + eta beta log mu + eta P pi_t + const

whose last iterate goes to the regularised equilibrium if eta is small enough. GRPO as it is used
for scalar rewards adds three terms, all off by default here: the importance ratio is clipped, each
response counts by the mean over its tokens, and rewards are divided by the group's standard
deviation. With the last one the exact update is

    log pi_{t+1} = (1 - eta beta) log pi_t + eta beta log mu + eta (P pi_t - 1/2) / sigma_t + const
    sigma_t^2    = Var_{y ~ pi_t} (P pi_t)(y)

which does not solve the game: the closer responses come to each other in worth, the longer is the
step between them.

Paper -> here: the group's win rate leaves nobody out, P(y > y) = 1/2, and the baseline is of the
others. The ratio is that of whole responses, not of tokens. The division leaves the KL outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nlhf_zoo import losses
from nlhf_zoo.algorithms.base import PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import positive
from nlhf_zoo.algorithms.surrogates import mean_token_policy_gradient, policy_gradient
from nlhf_zoo.records import Batch, ProximalStep

_WARNING = (
    "PairwiseGRPO.normalise divides by the group's standard deviation, and the exact update then "
    "does not solve the game: at beta 0.1 and eta 0.1 the exploitability of ten random games of "
    "ten actions circles between 0.028 and 0.44, from a mean of 0.056 at the start, and without "
    "the division it falls below 1e-26."
)


class PairwiseGRPO(PolicyOptimizer):
    """Pairwise GRPO: policy gradients in self-play, rewarded by the group's win rate.

    Args:
        eta: step size of the closed form. With policy gradients the step lies in the learning rate.
        normalise: whether win rates are divided by their standard deviation within the group. Such
            a step does not solve the game.
        clip: whether the importance ratio of a rollout that serves several gradient steps is
            clipped at the rollout's `clip`; without, it is followed everywhere.
        length: whether each response counts by the mean over its tokens, in place of their sum.
        surrogate: loss of the proximal step; None is the policy gradient, also on a rollout that
            serves several gradient steps.

    Raises:
        ValueError: another surrogate is to be clipped or divided by lengths.
    """

    paper = "arXiv:2401.04056"

    def __init__(
        self,
        eta: float = 0.1,
        normalise: bool = False,
        clip: bool = False,
        length: bool = False,
        surrogate: Surrogate | None = None,
    ) -> None:
        if surrogate is not None and (clip or length):
            raise ValueError(
                "clip and length are of PairwiseGRPO's own policy gradient: leave surrogate at "
                "null, or both of them at false"
            )
        self.eta = positive(eta, "eta")
        self.normalise = normalise
        self.clip = clip
        self.length = length
        self.surrogate = surrogate

    @property
    def last_iterate(self) -> bool:
        """Unless win rates are divided by their standard deviation."""
        return not self.normalise

    @property
    def clips(self) -> bool:
        """If the ratio is to be clipped."""
        return self.clip

    @property
    def warning(self) -> str | None:
        """What was measured of the division by the standard deviation."""
        return _WARNING if self.normalise else None

    @property
    def paper_surrogate(self) -> Surrogate:
        """The policy gradient, of sums or means over tokens."""
        return mean_token_policy_gradient if self.length else policy_gradient

    def chosen_surrogate(self, reused: bool) -> Surrogate:
        """The surrogate that was given, or the policy gradient, on every rollout."""
        return self.surrogate or self.paper_surrogate

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step from the policy against itself."""
        return [
            ProximalStep(
                centre={"policy": 1 - self.eta * beta, "reference": self.eta * beta},
                payoff=((1.0, {"policy": 1.0}),),
                step_size=self.eta,
                self_play=True,
                normalised=self.normalise,
            )
        ]

    def loss(self, step: ProximalStep, batch: Batch) -> Tensor:
        """The surrogate's, of win rates or of these over their standard deviation."""
        if step.normalised:
            payoff = torch.where(batch.weight > 0, batch.payoff, 0.5)
            payoff = losses.standardised(payoff, batch.weight, batch.enumerated)
            batch = replace(batch, payoff=payoff)
        return super().loss(step, batch)
