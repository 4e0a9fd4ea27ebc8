r"""Optimistic mirror descent, after arXiv 2502.16852 (ONPO) and arXiv 2512.24818.

    log pi_{t+1} = (1 - eta beta) log pi_t + eta beta log mu + eta (2 P pi_t - P pi_{t-1}) + const

The product of the last round is remembered, so a round costs one query; that extrapolation stands
in for the half step of the extragradient. Without the terms in eta beta it is for the unregularised
game, and both papers' method at once: ONPO's two sequences

    pi_t ~ pi'_t exp(eta P pi_{t-1}),   pi'_{t+1} ~ pi'_t exp(eta P pi_t)

are the optimistic multiplicative weights of 2512.24818 once pi' is eliminated. In theory, for
eta <= 1/8, the mean of the iterates has a gap of O(1/T), and the last one converges where the
equilibrium is unique and has full support.

Paper -> here: pi_t -> anchor, pi_{t-1} -> previous.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PlayerMoves, PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import positive
from nlhf_zoo.records import ProximalStep


class OptimisticMirrorDescent(PolicyOptimizer):
    """Optimistic mirror descent: one query a round, extrapolated from the last.

    Args:
        eta: step size; of the theory of the unregularised game at most 1/8.
        regularised: whether the step is drawn to the reference, as the game is; without, it is
            ONPO, that is optimistic multiplicative weights, for the unregularised game.
        surrogate: loss of the proximal step; None is `proximal_regression`.
    """

    paper = "arXiv:2502.16852"
    players = ("anchor", "previous")

    def __init__(
        self, eta: float = 0.1, regularised: bool = True, surrogate: Surrogate | None = None
    ) -> None:
        self.eta = positive(eta, "eta")
        self.regularised = regularised
        self.surrogate = surrogate

    @property
    def last_iterate(self) -> bool:
        """To the regularised equilibrium only if the step is regularised."""
        return self.regularised

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step from the anchor against 2 anchor - previous."""
        weight = self.eta * beta if self.regularised else 0.0
        return [
            ProximalStep(
                centre={"anchor": 1 - weight, "reference": weight} if weight else {"anchor": 1.0},
                payoff=((2.0, {"anchor": 1.0}), (-1.0, {"previous": 1.0})),
                step_size=self.eta,
            )
        ]

    def end_round(self, players: PlayerMoves, round: int) -> None:
        """Both copies move one round on."""
        players.copy_("anchor", "previous")
        players.copy_("policy", "anchor")
