r"""Online DPO (OAIF), arXiv 2402.04792.

    y, y' ~ pi:   - p log sigma(beta D) - (1 - p) log sigma(-beta D)
                  D = log(pi/mu)(y) - log(pi/mu)(y')

p is the oracle's probability, or with `hard` the label of the likelier winner. It fits a
Bradley-Terry reward to the pairs of the current policy, so in general it does not solve the game:
where preferences are intransitive its stationary point is another policy than the equilibrium. It
has no closed form.

Paper -> here: beta -> the game's beta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from nlhf_zoo.algorithms.base import PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.surrogates import logistic
from nlhf_zoo.records import PLAIN, Batch, Decoding, ProximalStep


class OnlineDPO(PolicyOptimizer):
    """Online DPO: a logistic loss on pairs of the policy's own responses.

    Args:
        hard: use the label of the likelier winner (a tie stays 1/2) in place of the probability.
        surrogate: loss of the step; None is the paper's.
        scored: decoding of the responses.
    """

    paper = "arXiv:2402.04792"
    last_iterate = False
    closed_form = False

    def __init__(
        self, hard: bool = False, surrogate: Surrogate | None = None, scored: Decoding = PLAIN
    ) -> None:
        self.hard = hard
        self.surrogate = surrogate
        self.scored = scored

    @property
    def paper_surrogate(self) -> Surrogate:
        """DPO's logistic loss."""
        return logistic

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step on pairs of the policy's responses."""
        return [
            ProximalStep(
                centre={"reference": 1.0},
                payoff=((1.0, {"policy": 1.0}),),
                step_size=1 / beta,
                scored=self.scored,
                opponent=self.scored,
                self_play=True,
                pairs=True,
            )
        ]

    def loss(self, step: ProximalStep, batch: Batch) -> Tensor:
        """- p log sigma(beta D) - (1 - p) log sigma(-beta D) over the pairs."""
        if self.hard and batch.preference is not None:
            label = 0.5 + 0.5 * (batch.preference - 0.5).sign()
            batch = replace(batch, preference=label, payoff_bound=0.5)
        return super().loss(step, batch)
