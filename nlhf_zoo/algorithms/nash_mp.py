r"""Nash Mirror Prox, arXiv 2505.19731 (version 1).

    pi_{k+1/2} = argmin_pi  P(pi_k > pi)/beta       + KL(pi || mu) + KL(pi || pi_k)/eta
    pi_{k+1}   = argmin_pi  P(pi_{k+1/2} > pi)/beta + KL(pi || mu) + KL(pi || pi_k)/eta

In closed form log pi_{k+1/2} = [log pi_k + eta log mu + (eta/beta) P pi_k] / (1 + eta) + const,
then the same with P pi_{k+1/2}. With eta = 2 beta, in the number N of preference queries,
KL(pi* || pi) <= (1 + 2 beta)^(-N/2) KL(pi* || mu) at the last iterate, whatever the number of
responses; exploitability and span fall at the same order. "adaptive" finds a larger step in closed
form (``nlhf_zoo.algorithms.adaptive``); with s = eta / (beta (1 + eta)) it is EGPO's.

The paper's approximate version estimates both steps by stochastic policy gradients and keeps a slow
copy of the parameters; its constants were not available to us, so the recipe is our reading of the
two steps: `anchor` is an average of the policy with rate `kappa` (1 is a hard copy after each
round), it is the opponent while the lookahead is trained, and the lookahead is the opponent while
the policy is.

    A = q - beta log(pi/mu) - (beta/eta) log(pi/anchor) - baseline

Paper -> here: pi_k -> anchor, pi_{k+1/2} -> lookahead, eta -> eta, beta -> the game's beta.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.adaptive import Eta, accepts, eta_or_adaptive
from nlhf_zoo.algorithms.base import PlayerMoves, PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import at_least_one, positive, share
from nlhf_zoo.algorithms.surrogates import policy_gradient
from nlhf_zoo.records import PLAIN, Decoding, ProximalStep


class NashMP(PolicyOptimizer):
    """Nash Mirror Prox: two proximal steps a round, the second against the outcome of the first.

    Args:
        eta: step size of both proximal steps, dimensionless; None is 2 beta, the largest that the
            theory allows, and "adaptive", for the closed form alone, each game's own, found by an
            accept test.
        kappa: rate at which the anchor moves to the policy after a round; 1 copies it; above 0, and
            1 where eta is "adaptive".
        inner_steps: gradient steps for each proximal step.
        surrogate: loss of a proximal step.
        opponent: decoding of the opponents' responses.
    """

    paper = "arXiv:2505.19731"
    last_iterate = True
    players = ("anchor", "lookahead")
    accepts = staticmethod(accepts)

    def __init__(
        self,
        eta: Eta = None,
        kappa: float = 1.0,
        inner_steps: int = 1,
        surrogate: Surrogate = policy_gradient,
        opponent: Decoding = PLAIN,
    ) -> None:
        if eta == "adaptive" and kappa != 1:
            raise ValueError(
                f'eta "adaptive" starts each round from the policy: leave kappa at 1, not {kappa}'
            )
        self.eta = eta_or_adaptive(eta)
        self.kappa = share(positive(kappa, "kappa"), "kappa")
        self.inner_steps = at_least_one(inner_steps, "inner_steps")
        self.surrogate = surrogate
        self.opponent = opponent

    @property
    def adaptive(self) -> bool:
        """Whether each game finds its own step size."""
        return self.eta == "adaptive"

    def steps(
        self, beta: float, round: int, step_size: float | None = None
    ) -> Sequence[ProximalStep]:
        """Both steps start from the anchor; the opponent is the anchor, then the lookahead."""
        eta = 2 * beta if self.eta is None or self.eta == "adaptive" else self.eta
        if step_size is not None:
            eta = step_size * beta / (1 - step_size * beta)
        return [
            ProximalStep(
                centre={"anchor": 1 / (1 + eta), "reference": eta / (1 + eta)},
                payoff=((1.0, {opponent: 1.0}),),
                step_size=eta / (beta * (1 + eta)),
                writes=writes,
                opponent=self.opponent,
                gradient_steps=self.inner_steps,
            )
            for opponent, writes in [("anchor", "lookahead"), ("lookahead", "policy")]
        ]

    def end_round(self, players: PlayerMoves, round: int) -> None:
        """The anchor follows the policy."""
        players.lerp_("policy", "anchor", self.kappa)
