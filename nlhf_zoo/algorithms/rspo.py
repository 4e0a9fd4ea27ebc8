r"""Regularised Self-Play Policy Optimisation, arXiv 2503.00030: SPPO with a divergence to mu.

    lambda_r KL(pi || mu)  and  lambda_f KL(mu || pi)  are added to SPPO's game.

The first, taken at pi_t, is mirror descent: SPPO with the reference drawn into its centre,

    log pi_{t+1} = (1 - eta lambda_r) log pi_t + eta lambda_r log mu + eta P pi_t + const

whose last iterate goes to the equilibrium of the game at beta = lambda_r if eta is small enough,
where SPPO's circles. The second has no such form and is a term of the loss,

    (log(pi/pi_t)(y) + eta lambda_r log(pi_t/mu)(y) - eta (q(y) - 1/2))^2
        - 2 eta lambda_f E_{y'' ~ mu} log pi(y'')

on responses of mu that nobody judges. Both together stand still where

    (P pi)(y) - lambda_r log(pi/mu)(y) + lambda_f (mu/pi)(y)   is the same for all y,

another policy than the equilibrium wherever lambda_f is not 0. (2 eta and this are derived.)

Paper -> here: pi_t -> anchor, weights of the divergences -> reverse_kl, forward_kl; defaults: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from nlhf_zoo.algorithms.base import PlayerMoves, PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import not_negative
from nlhf_zoo.algorithms.sppo import SPPO
from nlhf_zoo.algorithms.surrogates import explored_log_prob
from nlhf_zoo.records import PLAIN, Batch, Decoding, ProximalStep


class RSPO(PolicyOptimizer):
    """RSPO: SPPO that is regularised to the reference, by either divergence or both.

    Args:
        eta: step size, dimensionless; eta reverse_kl is at most 1.
        reverse_kl: weight of KL(pi || mu), not negative; None is the game's beta, 0 is SPPO's.
        forward_kl: weight of KL(mu || pi), not negative; above 0 there is no closed form.
        inner_steps: gradient steps for each round, all against the frozen pi_t.
        self_play: whether the scored responses are their own opponents.
        scored: decoding of the responses, of the opponents' too.
    """

    paper = "arXiv:2503.00030"
    players = ("anchor",)
    temperatures = ("reverse_kl",)  # the loss weighs forward_kl against payoffs as they are

    def __init__(
        self,
        eta: float = 0.3,
        reverse_kl: float | None = None,
        forward_kl: float = 0.0,
        inner_steps: int = 1,
        self_play: bool = True,
        scored: Decoding = PLAIN,
    ) -> None:
        self._sppo = SPPO(eta, inner_steps, self_play, scored=scored)
        self.reverse_kl = None if reverse_kl is None else not_negative(reverse_kl, "reverse_kl")
        self.forward_kl = not_negative(forward_kl, "forward_kl")

    @property
    def last_iterate(self) -> bool:
        """With the game's own divergence, at its own temperature."""
        return self.reverse_kl is None and self.forward_kl == 0

    closed_form = property(lambda self: self.forward_kl == 0)  # KL(mu || pi) is no step of the form

    @property
    def paper_surrogate(self) -> Surrogate:
        """SPPO's regression on each response; the forward term is added to it."""
        return self._sppo.paper_surrogate

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """SPPO's step, whose centre has a share of the reference."""
        weight = self._sppo.eta * (beta if self.reverse_kl is None else self.reverse_kl)
        if weight > 1 + 1e-12:
            raise ValueError(f"RSPO needs eta * reverse_kl <= 1, but it is {weight:g}")
        centre = {"anchor": 1 - weight, "reference": weight} if weight else {"anchor": 1.0}
        explored = {"reference": 1.0} if self.forward_kl else None
        return [
            replace(step, centre=centre, explored=explored)
            for step in self._sppo.steps(beta, round)
        ]

    def loss(self, step: ProximalStep, batch: Batch) -> Tensor:
        """SPPO's loss, and 2 eta lambda_f KL(mu || pi) up to a constant."""
        loss = self._sppo.loss(step, batch)
        if not self.forward_kl:
            return loss
        return loss - 2 * step.step_size * self.forward_kl * explored_log_prob(batch)

    def end_round(self, players: PlayerMoves, round: int) -> None:
        """The anchor is the policy of the round's start."""
        self._sppo.end_round(players, round)
