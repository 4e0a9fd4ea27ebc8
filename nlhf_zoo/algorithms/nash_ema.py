r"""Nash-EMA-PG, arXiv 2312.00886: policy gradients against an average with the start.

    theta_o = (1 - w) theta_t + w theta_0:   the opponent's parameters, of the policy and its start
    g = grad log pi(y) [P(y > y') - 1/2 - beta log(pi/mu)(y)],   y ~ pi, y' ~ pi_{theta_o}

Nash-MD-PG with an opponent that is an average of parameters, in place of a mixture of laws: it is
one network, which draws by itself, token by token, whole responses of a law of its own. On a table,
whose parameters are logits, it is the geometric mixture with the start, and the exact step

    log pi_{t+1} = (1 - eta beta) log pi_t + eta beta log mu + eta P pi_t^(1 - w) pi_0^w + const

is that of Nash-MD with that weight in the opponent, where the policy starts at the reference. So is
its fixed point: the equilibrium of the stated game for w = 0 only. On LoRA adapters it is the
adapters that are averaged, not their products. ("With theta_0" is our reading of the paper's moving
average.)

Paper -> here: tau -> beta, the weight of the average -> mixture, theta_0 -> start, the opponent ->
anchor. The default is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PlayerMoves, PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import positive, share
from nlhf_zoo.algorithms.surrogates import policy_gradient
from nlhf_zoo.records import PLAIN, Decoding, ProximalStep


class NashEMA(PolicyOptimizer):
    """Nash-EMA: one step against a policy whose parameters are averaged with the start's.

    Args:
        eta: step size of the closed form. With policy gradients the step lies in the learning rate.
        mixture: weight of the start's parameters in the opponent's; 0 is self-play.
        surrogate: loss of the proximal step; None is the paper's, and on a rollout that serves
            several gradient steps `proximal_regression`.
        opponent: decoding of the opponents' responses.
    """

    paper = "arXiv:2312.00886"
    players = ("anchor", "start")
    fixed_players = ("start",)

    def __init__(
        self,
        eta: float = 0.1,
        mixture: float = 0.125,
        surrogate: Surrogate | None = None,
        opponent: Decoding = PLAIN,
    ) -> None:
        self.eta = positive(eta, "eta")
        self.mixture = share(mixture, "mixture")
        self.surrogate = surrogate
        self.opponent = opponent

    @property
    def last_iterate(self) -> bool:
        """Against itself; with an average the fixed point is another."""
        return self.mixture == 0

    @property
    def paper_surrogate(self) -> Surrogate:
        """The policy gradient of Nash-EMA-PG."""
        return policy_gradient

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step from the policy against the average."""
        return [
            ProximalStep(
                centre={"policy": 1 - self.eta * beta, "reference": self.eta * beta},
                payoff=((1.0, {"anchor": 1.0}),),
                step_size=self.eta,
                opponent=self.opponent,
            )
        ]

    def end_round(self, players: PlayerMoves, round: int) -> None:
        """The opponent is the start, moved to the policy but for its share."""
        players.copy_("start", "anchor")
        players.lerp_("policy", "anchor", 1 - self.mixture)
