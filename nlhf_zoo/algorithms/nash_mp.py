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

from nlhf_zoo.algorithms.adaptive import Eta
from nlhf_zoo.algorithms.base import PlayerMoves, Surrogate
from nlhf_zoo.algorithms.checks import at_least_one, positive, share
from nlhf_zoo.algorithms.half_steps import Extragradient
from nlhf_zoo.algorithms.surrogates import policy_gradient, proximal_regression
from nlhf_zoo.records import PLAIN, Decoding, ProximalStep


class NashMP(Extragradient):
    """Nash Mirror Prox: two proximal steps a round, the second against the outcome of the first.

    Args:
        eta: step size of both proximal steps, dimensionless; None is 2 beta, the largest that the
            theory allows, and "adaptive", for the closed form alone, each game's own, found by an
            accept test.
        kappa: rate at which the anchor moves to the policy after a round; 1 copies it; above 0, and
            1 where eta is "adaptive".
        inner_steps: gradient steps for each proximal step.
        surrogate: loss of a proximal step; None is the policy gradient, and `proximal_regression`
            in self-play or on a rollout that serves several gradient steps.
        opponent: decoding of the opponents' responses.
        self_play: each half step's opponents are its scored responses too: those of the anchor
            among themselves, then those of the lookahead; half of the queries.
        reweighted: the second half step, too, takes the anchor's responses and their answers, each
            as an opponent weighted by lookahead / anchor, and asks nothing; on rollouts that serve
            several gradient steps, in self-play.
    """

    paper = "arXiv:2505.19731"
    players = ("anchor", "lookahead")

    def __init__(
        self,
        eta: Eta = None,
        kappa: float = 1.0,
        inner_steps: int = 1,
        surrogate: Surrogate | None = None,
        opponent: Decoding = PLAIN,
        self_play: bool = False,
        reweighted: bool = False,
    ) -> None:
        if eta == "adaptive" and kappa != 1:
            raise ValueError(
                f'eta "adaptive" starts each round from the policy: leave kappa at 1, not {kappa}'
            )
        scored = opponent if self_play else PLAIN
        super().__init__(eta, surrogate, scored, opponent, self_play, reweighted)
        self.kappa = share(positive(kappa, "kappa"), "kappa")
        self.inner_steps = at_least_one(inner_steps, "inner_steps")

    @property
    def paper_surrogate(self) -> Surrogate:
        """The policy gradient, which needs the policy's own responses; else the regression."""
        return proximal_regression if self.self_play else policy_gradient

    def steps(
        self, beta: float, round: int, step_size: float | None = None
    ) -> Sequence[ProximalStep]:
        """Both steps start from the anchor; the opponent is the anchor, then the lookahead."""
        eta = self.eta_or(2 * beta)
        if step_size is not None:
            eta = step_size * beta / (1 - step_size * beta)
        centre = {"anchor": 1 / (1 + eta), "reference": eta / (1 + eta)}
        return self.half_steps("anchor", centre, eta / (beta * (1 + eta)), self.inner_steps)

    def end_round(self, players: PlayerMoves, round: int) -> None:
        """The anchor follows the policy."""
        players.lerp_("policy", "anchor", self.kappa)
