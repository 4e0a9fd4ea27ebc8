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

from nlhf_zoo.algorithms.adaptive import Eta
from nlhf_zoo.algorithms.base import Surrogate
from nlhf_zoo.algorithms.half_steps import Extragradient
from nlhf_zoo.algorithms.surrogates import ipo_regression
from nlhf_zoo.records import PLAIN, Decoding, ProximalStep


class EGPO(Extragradient):
    """EGPO: extragradient, two steps a round from the same policy.

    Args:
        eta: step size; None is 2 / (1 + 2 beta), the largest that the theory allows, and
            "adaptive", for the closed form alone, each game's own, found by an accept test. With
            gradients and the paper's loss the step lies in the learning rate.
        surrogate: loss of a proximal step; None is the paper's, and on a rollout that serves
            several gradient steps `proximal_regression`.
        scored: decoding of the responses that are scored; temperature inf is uniform sampling on a
            table.
        opponent: decoding of the opponents' responses.
        self_play: each half step's opponents are its scored responses too: those of the policy
            among themselves, then those of the lookahead; half of the queries.
        reweighted: the second half step, too, takes the policy's responses and their answers, each
            as an opponent weighted by lookahead / policy, and asks nothing; on rollouts that serve
            several gradient steps, in self-play.

    Raises:
        ValueError: in self-play the two decodings differ.
    """

    paper = "arXiv:2503.08942"
    players = ("lookahead",)

    def __init__(
        self,
        eta: Eta = None,
        surrogate: Surrogate | None = None,
        scored: Decoding = PLAIN,
        opponent: Decoding = PLAIN,
        self_play: bool = False,
        reweighted: bool = False,
    ) -> None:
        super().__init__(eta, surrogate, scored, opponent, self_play, reweighted)

    @property
    def paper_surrogate(self) -> Surrogate:
        """Online IPO's regression."""
        return ipo_regression

    def steps(
        self, beta: float, round: int, step_size: float | None = None
    ) -> Sequence[ProximalStep]:
        """Both steps start from the policy; the opponent is the policy, then the lookahead."""
        eta = self.eta_or(2 / (1 + 2 * beta)) if step_size is None else step_size
        return self.half_steps("policy", {"policy": 1 - eta * beta, "reference": eta * beta}, eta)
