r"""Direct Nash Optimisation, arXiv 2404.03715.

    y, y' ~ pi_t:   - p log sigma((d - d')/eta) - (1 - p) log sigma(-(d - d')/eta)
                    p = sigma(q - q'),   q = P pi_t,   d = log(pi/pi_t)(y)

With q exact the minimiser is the step of multiplicative weights on the *unregularised* game, as
SPPO has it,

    log pi_{t+1} = log pi_t + eta P pi_t + const

so the average iterate goes to its equilibrium, and the last one cycles. With q estimated from
samples the loss is biased, for sigma is no straight line: E sigma(q - q') shrinks q - q' by
tanh((q - q')/2) var(q - q') / 2 to second order (derived), and the step by eta times that. It falls
as one over the number of opponents; `proximal_regression` as SPPO's surrogate has no such bias.

Paper -> here: beta -> 1 / eta (0.05 to 0.1 there, so eta 10 to 20; the default here is for tables).
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PlayerMoves, PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.sppo import SPPO
from nlhf_zoo.algorithms.surrogates import payoff_cross_entropy
from nlhf_zoo.records import PLAIN, Decoding, ProximalStep


class DNO(PolicyOptimizer):
    """DNO: multiplicative weights in self-play, by a cross-entropy on differences of payoffs.

    Args:
        eta: step size, dimensionless.
        inner_steps: gradient steps for each round, all against the frozen pi_t.
        self_play: whether the scored responses are their own opponents.
        scored: decoding of the responses, of the opponents' too.
    """

    paper = "arXiv:2404.03715"
    last_iterate = False
    players = ("anchor",)

    def __init__(
        self,
        eta: float = 0.3,
        inner_steps: int = 1,
        self_play: bool = True,
        scored: Decoding = PLAIN,
    ) -> None:
        self._sppo = SPPO(eta, inner_steps, self_play, scored=scored)

    @property
    def paper_surrogate(self) -> Surrogate:
        """DNO's cross-entropy on pairs."""
        return payoff_cross_entropy

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """SPPO's step, from the anchor against the anchor."""
        return self._sppo.steps(beta, round)

    def end_round(self, players: PlayerMoves, round: int) -> None:
        """The anchor is the policy of the round's start."""
        self._sppo.end_round(players, round)
