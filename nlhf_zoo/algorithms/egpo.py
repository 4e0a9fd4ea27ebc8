r"""Extragradient Preference Optimisation, arXiv 2503.08942.

    theta_{t+1/2} = (1 - eta beta) theta_t + eta beta (theta_mu + P pi_t / beta)
    theta_{t+1}   = (1 - eta beta) theta_t + eta beta (theta_mu + P pi_{t+1/2} / beta)

EGPO(eta / (beta (1 + eta))) and Nash-MP(eta) are one map in exact form. The last iterate goes to
pi*, linearly, for

    eta <= 2 / (1 + 2 beta)

On a parametrised policy both half steps are optimiser steps on the IPO 1 loss

    (D log(pi/mu) - D q / beta)^2

The second one starts from the restored parameters and optimiser state, with opponents from the half
step.

Paper -> here: theta_{t+1/2} -> lookahead, eta -> eta, beta -> the game's beta.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import positive
from nlhf_zoo.algorithms.surrogates import ipo_regression
from nlhf_zoo.records import PLAIN, Decoding, ProximalStep


class EGPO(PolicyOptimizer):
    """EGPO: extragradient, two steps a round from the same policy.

    Args:
        eta: step size; None is 2 / (1 + 2 beta), the largest that the theory allows. With
            gradients and the paper's loss the step lies in the learning rate.
        surrogate: loss of a proximal step.
        scored: decoding of the responses that are scored; temperature inf is uniform sampling on a
            table.
        opponent: decoding of the opponents' responses.
    """

    paper = "arXiv:2503.08942"
    last_iterate = True
    players = ("lookahead",)

    def __init__(
        self,
        eta: float | None = None,
        surrogate: Surrogate = ipo_regression,
        scored: Decoding = PLAIN,
        opponent: Decoding = PLAIN,
    ) -> None:
        self.eta = positive(eta, "eta")
        self.surrogate = surrogate
        self.scored = scored
        self.opponent = opponent

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """Both steps start from the policy; the opponent is the policy, then the lookahead."""
        eta = 2 / (1 + 2 * beta) if self.eta is None else self.eta
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
