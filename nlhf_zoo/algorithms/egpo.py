r"""Extragradient Preference Optimisation, arXiv 2503.08942.

    theta_{t+1/2} = (1 - eta beta) theta_t + eta beta (theta_mu + P pi_t / beta)
    theta_{t+1}   = (1 - eta beta) theta_t + eta beta (theta_mu + P pi_{t+1/2} / beta)

EGPO(eta / (beta (1 + eta))) and Nash-MP(eta) are one map in exact form. The last iterate goes to
pi*, linearly, for

    eta <= 2 / (1 + 2 beta)

"adaptive" finds a larger step in closed form (``nlhf_zoo.algorithms.adaptive``).

On a parametrised policy both half steps are optimiser steps on the IPO 1 loss

    (D log(pi/mu) - D q / beta)^2

The second one starts from the restored parameters and optimiser state, with opponents from the half
step.

Paper -> here: theta_{t+1/2} -> lookahead, eta -> eta, beta -> the game's beta.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.adaptive import Eta, accepts, eta_or_adaptive
from nlhf_zoo.algorithms.base import PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.surrogates import ipo_regression
from nlhf_zoo.records import PLAIN, Decoding, ProximalStep


class EGPO(PolicyOptimizer):
    """EGPO: extragradient, two steps a round from the same policy.

    Args:
        eta: step size; None is 2 / (1 + 2 beta), the largest that the theory allows, and
            "adaptive", for the closed form alone, each game's own, found by an accept test. With
            gradients and the paper's loss the step lies in the learning rate.
        surrogate: loss of a proximal step.
        scored: decoding of the responses that are scored; temperature inf is uniform sampling on a
            table.
        opponent: decoding of the opponents' responses.
    """

    paper = "arXiv:2503.08942"
    last_iterate = True
    players = ("lookahead",)
    accepts = staticmethod(accepts)

    def __init__(
        self,
        eta: Eta = None,
        surrogate: Surrogate = ipo_regression,
        scored: Decoding = PLAIN,
        opponent: Decoding = PLAIN,
    ) -> None:
        self.eta = eta_or_adaptive(eta)
        self.surrogate = surrogate
        self.scored = scored
        self.opponent = opponent

    @property
    def adaptive(self) -> bool:
        """Whether each game finds its own step size."""
        return self.eta == "adaptive"

    def steps(
        self, beta: float, round: int, step_size: float | None = None
    ) -> Sequence[ProximalStep]:
        """Both steps start from the policy; the opponent is the policy, then the lookahead."""
        eta = 2 / (1 + 2 * beta) if self.eta is None or self.eta == "adaptive" else self.eta
        if step_size is not None:
            eta = step_size
        return [
            ProximalStep(
                centre={"policy": 1 - eta * beta, "reference": eta * beta},
                payoff=((1.0, {opponent: 1.0}),),
                step_size=eta,
                writes=writes,
                scored=self.scored,
                opponent=self.opponent,
            )
            for opponent, writes in [("policy", "lookahead"), ("lookahead", "policy")]
        ]
