r"""Pairwise GRPO: the policy gradient in self-play, with the group's win rate as the reward.

    y_1, ..., y_K ~ pi:   r_k = mean over the group of P(y_k > y_j)              arXiv 2401.04056
    g = E grad log pi(y_k) [r_k - beta log(pi/mu)(y_k) - baseline of the others]

The exact population update is mirror descent, as of online IPO,

    log pi_{t+1} = (1 - eta beta) log pi_t + eta beta log mu + eta P pi_t + const

whose last iterate goes to the regularised equilibrium if eta is small enough. GRPO for scalar
rewards adds three terms, off by default: the importance ratio, here of whole responses, is clipped;
a response counts by the mean over its tokens; and rewards, but not the KL, are divided by the
group's standard deviation. Then P pi_t - 1/2 over its deviation sigma_t stands in the exact update,
which does not solve the game: the closer responses are in worth, the longer is the step.

Paper -> here: the win rate leaves nobody out, P(y > y) = 1/2; the baseline is of the others.
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

_WARNING = (  # figures: docs/algorithms/pairwise_grpo.md
    "PairwiseGRPO.normalise divides by the group's standard deviation, and the exact update then "
    "does not solve the game: at beta 0.1 and eta 0.1 the exploitability of ten random games "
    "circles between 0.028 and 0.44, and without the division it falls below 1e-26."
)


class PairwiseGRPO(PolicyOptimizer):
    """Pairwise GRPO: policy gradients in self-play, rewarded by the group's win rate.

    Args:
        eta: step size of the closed form. With policy gradients the step lies in the learning rate.
        normalise: divide win rates by their standard deviation; that does not solve the game.
        clip: clip the importance ratio of a reused rollout at its `clip`.
        length: let a response count by the mean over its tokens, in place of their sum.
        surrogate: loss of the proximal step; None is the policy gradient, on any rollout.
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
            raise ValueError("clip and length need PairwiseGRPO's own surrogate: leave it at null")
        self.eta = positive(eta, "eta")
        self.normalise, self.clip, self.length = normalise, clip, length
        self.surrogate = surrogate

    last_iterate = property(lambda self: not self.normalise)
    clips = property(lambda self: self.clip)
    warning = property(lambda self: _WARNING if self.normalise else None)

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
