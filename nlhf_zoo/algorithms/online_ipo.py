r"""Online IPO, arXiv 2403.08635.

In exact form it is online mirror descent, INPO (arXiv 2407.00617) and magnetic mirror descent:

    log pi_{t+1} = (1 - eta beta) log pi_t + eta beta log mu + eta P pi_t + const

    IPO 2:  y, y' ~ pi:                     (D log(pi/mu) - (P(y > y') - 1/2) / beta)^2
    IPO 1:  y, y' ~ any sampler, y'' ~ pi:  (D log(pi/mu) - (P(y > y'') - P(y' > y'')) / beta)^2

Its stationary point is the regularised equilibrium, and its expected gradient is the self-play
policy gradient. The last iterate goes there linearly if eta is small enough.

Paper -> here: tau -> beta; INPO's eta is an inverse step, 1 / eta here.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import positive
from nlhf_zoo.algorithms.surrogates import ipo_regression
from nlhf_zoo.records import PLAIN, Decoding, ProximalStep


class OnlineIPO(PolicyOptimizer):
    """Online IPO: mirror descent in self-play, regularised to the reference.

    Args:
        eta: step size of the closed form. With gradients and the paper's loss the step lies in the
            learning rate.
        self_play: whether the scored responses are their own opponents (IPO 2) or others are drawn
            (IPO 1).
        surrogate: loss of the proximal step; None is the paper's, and on a rollout that serves
            several gradient steps `proximal_regression`.
        scored: decoding of the responses that are scored; plain in self-play.
    """

    paper = "arXiv:2403.08635"
    last_iterate = True

    def __init__(
        self,
        eta: float = 0.1,
        self_play: bool = True,
        surrogate: Surrogate | None = None,
        scored: Decoding = PLAIN,
    ) -> None:
        if self_play and not scored.is_plain:
            raise ValueError(
                "in self-play the opponents are the scored responses: "
                "give self_play: false to temper these"
            )
        self.eta = positive(eta, "eta")
        self.self_play = self_play
        self.surrogate = surrogate
        self.scored = scored

    @property
    def paper_surrogate(self) -> Surrogate:
        """Online IPO's regression."""
        return ipo_regression

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step from the policy against itself."""
        return [
            ProximalStep(
                centre={"policy": 1 - self.eta * beta, "reference": self.eta * beta},
                payoff=((1.0, {"policy": 1.0}),),
                step_size=self.eta,
                scored=self.scored,
                self_play=self.self_play,
            )
        ]
