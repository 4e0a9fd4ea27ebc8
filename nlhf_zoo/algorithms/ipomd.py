r"""IPO-MD, arXiv 2403.08635: online IPO whose pairs are drawn from a mixture with the reference.

    y, y' ~ pi^(1 - w) mu^w / Z:   (D log(pi/mu) - (P(y > y') - 1/2) / beta)^2

Online IPO and Nash-MD in one: w = 0 is the first, and the exact step is that of Nash-MD with the
weight w in the opponent alone,

    log pi_{t+1} = (1 - eta beta) log pi_t + eta beta log mu + eta P pi_t^(1 - w) mu^w + const

so that its fixed point is that of Nash-MD with a mixture: the equilibrium of the stated game for
w = 0 only. The mixture draws the responses that are scored as well as their opponents, which are
the same ones. On a language model it is formed token by token.

Paper -> here: tau -> beta, the mixing weight -> mixture. The paper's default was not available to
us: .125, the least of the weights that are best for Nash-MD-PG, is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import positive, share
from nlhf_zoo.algorithms.surrogates import ipo_regression
from nlhf_zoo.records import ProximalStep


class IPOMD(PolicyOptimizer):
    """IPO-MD: online IPO on pairs from a mixture of the policy and the reference.

    Args:
        eta: step size of the closed form. With gradients and the paper's loss the step lies in the
            learning rate.
        mixture: weight of the reference in who draws the pairs; 0 is online IPO.
        surrogate: loss of the proximal step; None is the paper's, and on a rollout that serves
            several gradient steps `proximal_regression`.
    """

    paper = "arXiv:2403.08635"

    def __init__(
        self, eta: float = 0.1, mixture: float = 0.125, surrogate: Surrogate | None = None
    ) -> None:
        self.eta = positive(eta, "eta")
        self.mixture = share(mixture, "mixture")
        self.surrogate = surrogate

    @property
    def last_iterate(self) -> bool:
        """As online IPO; with a mixture the fixed point is another."""
        return self.mixture == 0

    @property
    def paper_surrogate(self) -> Surrogate:
        """Online IPO's regression."""
        return ipo_regression

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step from the policy, on pairs of the mixture."""
        mixture = {"policy": 1 - self.mixture, "reference": self.mixture}
        drawn = mixture if self.mixture else {"policy": 1.0}
        return [
            ProximalStep(
                centre={"policy": 1 - self.eta * beta, "reference": self.eta * beta},
                payoff=((1.0, drawn),),
                step_size=self.eta,
                sampler=drawn,
                self_play=True,
            )
        ]
