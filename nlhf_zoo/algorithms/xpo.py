r"""XPO, exploratory preference optimisation, arXiv 2405.21046.

    y, y' ~ pi, y'' ~ mu:   - p log sigma(beta D) - (1 - p) log sigma(-beta D) + alpha log pi(y'')
                            D = log(pi/mu)(y) - log(pi/mu)(y')

Online DPO's loss and a term that is *minimised*: it takes probability from what the reference
writes, so that the policy tries other responses. Its responses are not judged, and cost no query.
The reference never moves, so that they serve any number of gradient steps. Like online DPO it does
not solve the game in general, and has no closed form. It stands still where

    sum_y' pi(y') (P(y > y') - sigma(beta D))  =  alpha (mu(y)/pi(y) - 1) / (2 beta)   for all y,

which asks for pi >= alpha mu / (2 beta + alpha): a response below has too few pairs to come back,
and falls on. (Derived; at the paper's alpha and beta it is 5e-5 of mu.)

Paper -> here: beta -> the game's beta (0.1 in the paper), alpha -> alpha (5e-6 to 1e-5 there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from nlhf_zoo.algorithms.base import PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import not_negative
from nlhf_zoo.algorithms.online_dpo import OnlineDPO
from nlhf_zoo.algorithms.surrogates import explored_log_prob
from nlhf_zoo.records import PLAIN, Batch, Decoding, ProximalStep


class XPO(PolicyOptimizer):
    """XPO: online DPO that pushes responses of the reference down.

    Args:
        alpha: weight of the exploration term; at 0 it is online DPO.
        hard: use the label of the likelier winner (a tie stays 1/2) in place of the probability.
        scored: decoding of the responses that are judged; the reference's are plain.
    """

    paper = "arXiv:2405.21046"
    last_iterate = False
    closed_form = False

    def __init__(self, alpha: float = 1e-5, hard: bool = False, scored: Decoding = PLAIN) -> None:
        self.alpha = not_negative(alpha, "alpha")
        self._online_dpo = OnlineDPO(hard, scored=scored)

    @property
    def paper_surrogate(self) -> Surrogate:
        """DPO's logistic loss; the term is added to it."""
        return self._online_dpo.paper_surrogate

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """Online DPO's step; the reference draws, too."""
        explored = {"reference": 1.0} if self.alpha else None
        return [replace(s, explored=explored) for s in self._online_dpo.steps(beta, round)]

    def loss(self, step: ProximalStep, batch: Batch) -> Tensor:
        """Online DPO's loss + alpha E log pi(y'') over responses of the reference."""
        loss = self._online_dpo.loss(step, batch)
        return loss + self.alpha * explored_log_prob(batch) if self.alpha else loss
