r"""Nash Prox, arXiv 2505.19731 (version 2): a proximal point method with online IPO inside.

Outer rounds are implicit, and KL(pi* || pi_{k+1}) <= KL(pi* || pi_k) / (1 + eta) for any eta > 0:

    pi_{k+1} = argmax_pi  P(pi > pi_{k+1}) - beta KL(pi || mu) - (beta/eta) KL(pi || pi_k)
    log pi_{k+1} = [eta log mu + log pi_k + (eta/beta) P pi_{k+1}] / (1 + eta) + const

pi_{k+1} is the equilibrium of a game at tau = beta (1 + 1/eta), whose reference is the geometric
mixture m = mu^(eta/(1 + eta)) pi_k^(1/(1 + eta)). Inner rounds are online IPO in that game, in
self-play, with pi_k held in `anchor`; w = s tau is the weight of m in a step's centre:

    log pi <- (1 - w) log pi + w log m + (w / tau) P pi + const

so that the policy gradient does not depend on w:

    A = q - beta log(pi/mu) - (beta/eta) log(pi/anchor) - baseline

With w = 1, K inner rounds are K fixed-point iterations of the implicit step, from pi_k: K = 1 is
mirror descent, K = 2 is EGPO and Nash-MP. With eta <= 2 beta these contract in any game, by
1 / (2 tau) in total variation; with w <= 4 tau^2 / (1 + 4 tau^2) inner rounds do for every eta, by
1 - w in KL. Both are derived for this package.

The paper's constants were not available to us: eta, the number of inner rounds and w are our
reading. Paper -> here: pi_k -> anchor, eta -> eta, beta -> the game's beta.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PlayerMoves, PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import at_least_one, positive, share
from nlhf_zoo.algorithms.surrogates import policy_gradient
from nlhf_zoo.records import ProximalStep


class NashProx(PolicyOptimizer):
    """Nash Prox: a proximal point method whose steps are found by self-play.

    Args:
        eta: step size of the outer rounds, dimensionless; None is 2 beta.
        inner_rounds: rounds, each of one query, between two moves of the anchor.
        kappa: rate at which the anchor then moves to the policy; 1 copies it; above 0.
        weight: of the proximal game's reference in the centre of an inner step, above 0, at most 1;
            1 is a fixed-point iteration of the implicit step. With the policy gradient the step
            lies in the learning rate, and it has no effect.
        surrogate: loss of an inner step; None is the policy gradient, and on a rollout that serves
            several gradient steps `proximal_regression`.
    """

    paper = "arXiv:2505.19731"
    last_iterate = True
    players = ("anchor",)

    def __init__(
        self,
        eta: float | None = None,
        inner_rounds: int = 3,
        kappa: float = 1.0,
        weight: float = 1.0,
        surrogate: Surrogate | None = None,
    ) -> None:
        self.eta = positive(eta, "eta")
        self.inner_rounds = at_least_one(inner_rounds, "inner_rounds")
        self.kappa = share(positive(kappa, "kappa"), "kappa")
        self.weight = share(positive(weight, "weight"), "weight")
        self.surrogate = surrogate

    @property
    def paper_surrogate(self) -> Surrogate:
        """The policy gradient of self-play."""
        return policy_gradient

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step from the policy, the reference and the anchor, against the policy itself."""
        eta = 2 * beta if self.eta is None else self.eta
        return [
            ProximalStep(
                centre={
                    "policy": 1 - self.weight,
                    "reference": self.weight * eta / (1 + eta),
                    "anchor": self.weight / (1 + eta),
                },
                payoff=((1.0, {"policy": 1.0}),),
                step_size=self.weight * eta / (beta * (1 + eta)),
                self_play=True,
            )
        ]

    def end_round(self, players: PlayerMoves, round: int) -> None:
        """After the last inner round the anchor follows the policy."""
        if (round + 1) % self.inner_rounds == 0:
            players.lerp_("policy", "anchor", self.kappa)
