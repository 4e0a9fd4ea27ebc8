r"""Iterative Nash Policy Optimisation, arXiv 2407.00617.

    log pi_{t+1} = (1 - eta beta) log pi_t + eta beta log mu + eta P pi_t + const

Mirror descent as online IPO's, on responses of the frozen pi_t. Of two that are independent, y won
against y', its loss is

    (h(y, y') - eta/2)^2,   h = D log pi - eta beta D log mu - (1 - eta beta) D log pi_t

so that P pi_t is never estimated: over labels the loss is (h - eta (P(y > y') - 1/2))^2 up to a
constant, and over y' its minimiser is the step. That is the regression on pairs of this package,
where an oracle that says a label, 1 or 0, makes the target eta/2 or -eta/2, and one that says the
probability makes its mean.

Paper -> here: pi_t -> anchor, eta -> 1 / eta (the paper's is an inverse step: its target is
1 / (2 eta)), tau -> beta. The default of eta is ours, for tables; the paper's is 1 / eta = .005 to
.0075 with tau = eta / 3, that is eta beta = 1/3.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PlayerMoves, PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import at_least_one, positive
from nlhf_zoo.records import ProximalStep


class INPO(PolicyOptimizer):
    """INPO: mirror descent in self-play, from pairs of the frozen policy's responses.

    Its derivation needs pairs that are independent. `model.rollout.pairs: knockout` trains on the
    best and the worst of K, as the paper's experiments do: then it goes to another policy.

    Args:
        eta: step size, at most 1 / beta.
        inner_steps: gradient steps for each round, all from the frozen pi_t.
        surrogate: loss of the step; None is `proximal_regression`.
    """

    paper = "arXiv:2407.00617"
    last_iterate = True
    players = ("anchor",)

    def __init__(
        self, eta: float = 0.3, inner_steps: int = 1, surrogate: Surrogate | None = None
    ) -> None:
        self.eta = positive(eta, "eta")
        self.inner_steps = at_least_one(inner_steps, "inner_steps")
        self.surrogate = surrogate

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step from the anchor, against the anchor."""
        return [
            ProximalStep(
                centre={"anchor": 1 - self.eta * beta, "reference": self.eta * beta},
                payoff=((1.0, {"anchor": 1.0}),),
                step_size=self.eta,
                sampler={"anchor": 1.0},
                self_play=True,
                gradient_steps=self.inner_steps,
            )
        ]

    def end_round(self, players: PlayerMoves, round: int) -> None:
        """The anchor is the policy of the round's start."""
        players.copy_("policy", "anchor")
