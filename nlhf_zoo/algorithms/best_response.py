r"""The best response to a policy that does not move, as a plan of proximal steps.

    log pi'_{t+1} = (1 - eta beta) log pi'_t + eta beta log mu + eta P pi + const

Its fixed point is mu exp(P pi / beta) / Z, which attains the exploitability of pi,

    e(pi) = max_{pi'}  P(pi' > pi) - beta KL(pi' || mu) + beta KL(pi || mu) - 1/2,

and log(pi' / fixed point) shrinks by 1 - eta beta in a round, to nothing at eta = 1 / beta.

It is trained as any algorithm is, and is none of the zoo's: those look for the equilibrium of the
game between two players that both move, and this for an answer to one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import positive
from nlhf_zoo.records import ProximalStep

OPPONENT = "opponent"  # the player whose best response is trained; nothing moves it


class BestResponse(PolicyOptimizer):
    """The regularised best response to ``opponent``, a player that stays where the policy began.

    Args:
        eta: step size; None is 1 / beta, with which a step is the best response itself.
        surrogate: loss of the proximal step; None is `proximal_regression`, which learns from
            rollouts of any law.
    """

    paper = "arXiv:2312.00886"
    seeks_equilibrium = False
    last_iterate = False  # where it goes is no equilibrium, unless the opponent is one
    players = (OPPONENT,)
    fixed_players = (OPPONENT,)

    def __init__(self, eta: float | None = None, surrogate: Surrogate | None = None) -> None:
        self.eta = positive(eta, "eta")
        self.surrogate = surrogate

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step from the policy against the opponent."""
        eta = 1 / beta if self.eta is None else self.eta
        weight = 1.0 if self.eta is None else eta * beta
        return [
            ProximalStep(
                centre={"policy": 1 - weight, "reference": weight},
                payoff=((1.0, {OPPONENT: 1.0}),),
                step_size=eta,
            )
        ]
