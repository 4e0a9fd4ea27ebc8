r"""REBEL, arXiv 2404.16767: policy optimisation by regression on relative rewards.

    y, y' ~ pi_t:   ( log(pi/pi_t)(y) - log(pi/pi_t)(y') - eta (r(y) - r(y')) )^2

Its minimiser is an exact step of the natural policy gradient,

    log pi_{t+1} = log pi_t + eta r + const

There is no opponent: r is a score of single responses, so that the oracle must have one. On a
Bradley-Terry preference, P(y > y') = sigma(r(y) - r(y')), it goes to the responses of the largest
score, which no other beats: the equilibrium of the game without regularisation. `regularised` puts
the reference into the centre, pi_t^(1 - eta beta) mu^(eta beta), and the fixed point is then
mu exp(r / beta) / Z, which maximises E r - beta KL(pi || mu), as RLHF does. The regularised game's
equilibrium has P pi* in place of r, and is another policy.

Paper -> here: eta -> eta (1 there); its loss is ours over eta^2, with the same minimiser.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PlayerMoves, PolicyOptimizer
from nlhf_zoo.algorithms.checks import at_least_one, positive
from nlhf_zoo.records import PLAIN, Decoding, ProximalStep


class REBEL(PolicyOptimizer):
    """REBEL: regression of log-ratios on differences of scores.

    Args:
        eta: step size, dimensionless; times beta at most 1 where it is regularised.
        inner_steps: gradient steps for each round, all from the frozen pi_t.
        regularised: draw the policy to the reference at the game's beta.
        scored: decoding of the responses.
    """

    paper = "arXiv:2404.16767"
    last_iterate = False
    players = ("anchor",)

    def __init__(
        self,
        eta: float = 1.0,
        inner_steps: int = 1,
        regularised: bool = False,
        scored: Decoding = PLAIN,
    ) -> None:
        self.eta = positive(eta, "eta")
        self.inner_steps = at_least_one(inner_steps, "inner_steps")
        self.regularised = regularised
        self.scored = scored

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step from the anchor, by score."""
        weight = self.eta * beta if self.regularised else 0.0
        return [
            ProximalStep(
                centre={"anchor": 1 - weight, "reference": weight},
                payoff=(),
                step_size=self.eta,
                sampler={"anchor": 1.0},
                scored=self.scored,
                gradient_steps=self.inner_steps,
                by_score=True,
            )
        ]

    def end_round(self, players: PlayerMoves, round: int) -> None:
        """The anchor is the policy of the round's start."""
        players.copy_("policy", "anchor")
