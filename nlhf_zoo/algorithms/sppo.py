r"""Self-Play Preference Optimisation, arXiv 2405.00675.

    log pi_{t+1} = log pi_t + eta P pi_t + const

Multiplicative weights on the *unregularised* game: the average iterate goes to its equilibrium,
the last one cycles and leaves the neighbourhood of the regularised equilibrium. The loss is
(log(pi_theta/pi_t)(y) - eta (q(y) - 1/2))^2 on responses of pi_t, frozen for `inner_steps`. 1/2
stands in for log Z / eta, so the minimiser is the step to O(eta^2): total variation 2e-5 at
eta = 0.3, 0.14 at 10.

Paper -> here: eta -> eta (1000 in the paper's recipe for language models; the default here is for
tables).
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PlayerMoves, PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import at_least_one, positive
from nlhf_zoo.algorithms.surrogates import sppo_regression
from nlhf_zoo.records import PLAIN, Decoding, ProximalStep


class SPPO(PolicyOptimizer):
    """SPPO: multiplicative weights in self-play, without the reference.

    Args:
        eta: step size, dimensionless.
        inner_steps: gradient steps for each round, all against the frozen pi_t.
        self_play: whether the scored responses are their own opponents.
        surrogate: loss of the proximal step; None is the paper's.
        scored: decoding of the responses, of the opponents' too.
    """

    paper = "arXiv:2405.00675"
    last_iterate = False
    players = ("anchor",)

    def __init__(
        self,
        eta: float = 0.3,
        inner_steps: int = 1,
        self_play: bool = True,
        surrogate: Surrogate | None = None,
        scored: Decoding = PLAIN,
    ) -> None:
        self.eta = positive(eta, "eta")
        self.inner_steps = at_least_one(inner_steps, "inner_steps")
        self.self_play = self_play
        self.surrogate = surrogate
        self.scored = scored

    @property
    def paper_surrogate(self) -> Surrogate:
        """SPPO's regression on each response."""
        return sppo_regression

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step from the anchor, against the anchor."""
        return [
            ProximalStep(
                centre={"anchor": 1.0},
                payoff=((1.0, {"anchor": 1.0}),),
                step_size=self.eta,
                sampler={"anchor": 1.0},
                scored=self.scored,
                opponent=self.scored,
                self_play=self.self_play,
                gradient_steps=self.inner_steps,
            )
        ]

    def end_round(self, players: PlayerMoves, round: int) -> None:
        """The anchor is the policy of the round's start."""
        players.copy_("policy", "anchor")
