r"""Nash Mirror Descent and its policy-gradient form Nash-MD-PG, arXiv 2312.00886.

    pi_t^mu      proportional to  pi_t^(1 - eta beta) mu^(eta beta)
    log pi_{t+1} = log pi_t^mu + eta P pi_t^mu + const

With eta_t = 2 / (beta (t + 2)), KL(pi* || pi_T) <= 8 / (beta^2 (T + 1)); with a constant step it
stalls at a biased fixed point, KL ~ eta^2. Nash-MD-PG decouples the mixing weight of the opponent
from eta and beta: with y from the policy and y' from the mixture,

    g = grad log pi(y) [P(y > y') - 1/2 - beta log(pi/mu)(y)]

Its fixed point moves with the weight: weights above .125 do not solve the stated game closely. On a
language model the mixture is formed token by token, which is another distribution than the mixture
of whole responses (so says the paper too).

Paper -> here: tau -> beta, eta -> eta, beta (the mixing weight of Nash-MD-PG) -> mixture.
"""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import positive, share
from nlhf_zoo.algorithms.surrogates import policy_gradient
from nlhf_zoo.records import PLAIN, Decoding, ProximalStep


class NashMD(PolicyOptimizer):
    """Nash Mirror Descent: one step against a mixture of the policy and the reference.

    Args:
        eta: step size, in units of 1 / beta at most 1; None is the paper's schedule,
            2 / (beta (t + 2)).
        mixture: weight of the reference in the opponent, 0 is self-play; None is eta beta, as the
            theory has it. The centre keeps eta beta, so that with any weight the step is
            regularised by the game's beta.
        surrogate: loss of the proximal step; None is the paper's, and on a rollout that serves
            several gradient steps `proximal_regression`.
        opponent: decoding of the opponents' responses.
    """

    paper = "arXiv:2312.00886"

    def __init__(
        self,
        eta: float | None = None,
        mixture: float | None = None,
        surrogate: Surrogate | None = None,
        opponent: Decoding = PLAIN,
    ) -> None:
        self.eta = positive(eta, "eta")
        self.mixture = share(mixture, "mixture")
        self.surrogate = surrogate
        self.opponent = opponent

    @property
    def paper_surrogate(self) -> Surrogate:
        """The policy gradient of Nash-MD-PG."""
        return policy_gradient

    @property
    def last_iterate(self) -> bool:
        """Under the paper's schedule and mixture; a constant step has a biased fixed point."""
        return self.eta is None and self.mixture is None

    @property
    def scheduled(self) -> bool:
        """The step falls with the round unless it was given."""
        return self.eta is None

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step; centre and opponent are the same mixture, unless `mixture` says otherwise.

        Raises:
            ValueError: eta beta is above 1, so that the mixture would have a negative weight.
        """
        eta = 2 / (beta * (round + 2)) if self.eta is None else self.eta
        if eta * beta > 1 + 1e-12:
            raise ValueError(f"Nash-MD needs eta * beta <= 1, but eta is {eta} and beta is {beta}")
        opponent = eta * beta if self.mixture is None else self.mixture
        return [
            ProximalStep(
                centre={"policy": 1 - eta * beta, "reference": eta * beta},
                payoff=((1.0, {"policy": 1 - opponent, "reference": opponent}),),
                step_size=eta,
                opponent=self.opponent,
            )
        ]
