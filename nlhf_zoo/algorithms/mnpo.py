r"""Multiplayer Nash Preference Optimisation, arXiv 2509.23102, against its own last n policies.

    log pi_{t+1} = w log mu + sum_j lambda_j [(1 - w) log pi_{t+1-j} + eta P pi_{t+1-j}] + const

for j = 1 ... n: one step of multiplicative weights from the geometric mean of the opponents,
against all of them. With equal weights lambda_j = 1/n and w = 0 it is the paper's
update; w, its code's ratio, is how far the step is drawn to the reference. The fixed point is the
equilibrium at the temperature w / eta, so that w = eta beta, the default, solves the stated game,
and w = 0 the one without regularisation. With one opponent it is INPO.

The game of n players who are paid the mean of their preferences over the others has the same
symmetric equilibrium as the game of two.

Paper -> here: pi_{t+1-j} -> history_j, eta -> 1 / eta (its is an inverse step, as INPO's). Its
code's constants, 1 / eta = .0075 and ratio = 1/3, are a beta of .0025; the defaults here are ours,
for tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlhf_zoo.algorithms.base import PlayerMoves, PolicyOptimizer, Surrogate
from nlhf_zoo.algorithms.checks import at_least_one, positive, share
from nlhf_zoo.records import ProximalStep


class MNPO(PolicyOptimizer):
    """MNPO: mirror descent from the last n policies, against all of them.

    Args:
        eta: step size.
        weights: lambda_1, ..., lambda_n, of the last policy first; above 0, with sum 1.
        ratio: weight w of the reference in the step; None is eta beta, which solves the game, and
            0 is the paper's equation.
        inner_steps: gradient steps for each round, all from the frozen policies.
        surrogate: loss of the step; None is `proximal_regression`.

    Raises:
        ValueError: the weights are none.
    """

    paper = "arXiv:2509.23102"

    def __init__(
        self,
        eta: float = 0.3,
        weights: Sequence[float] = (0.5, 0.5),
        ratio: float | None = None,
        inner_steps: int = 1,
        surrogate: Surrogate | None = None,
    ) -> None:
        if not (weights and min(weights) > 0 and math.isclose(sum(weights), 1.0, abs_tol=1e-9)):
            raise ValueError(
                f"weights must be numbers above 0 that sum to 1, but they are {[*weights]}"
            )
        self.eta = positive(eta, "eta")
        self.weights = tuple(weights)
        self.ratio = share(ratio, "ratio")
        self.inner_steps = at_least_one(inner_steps, "inner_steps")
        self.surrogate = surrogate

    @property
    def last_iterate(self) -> bool:
        """Where the ratio is that of the game, and the step small enough."""
        return self.ratio is None

    @property
    def players(self) -> tuple[str, ...]:
        """The last n policies, the last one first."""
        return tuple(f"history_{number}" for number in range(1, len(self.weights) + 1))

    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """One step from the last policies, against them."""
        ratio = self.eta * beta if self.ratio is None else self.ratio
        each = [*zip(self.players, self.weights, strict=True)]
        centre = {player: (1 - ratio) * weight for player, weight in each}
        return [
            ProximalStep(
                centre=centre | {"reference": ratio} if ratio else centre,
                payoff=tuple((weight, {player: 1.0}) for player, weight in each),
                step_size=self.eta,
                sampler={"history_1": 1.0},
                self_play=len(each) == 1,
                gradient_steps=self.inner_steps,
            )
        ]

    def end_round(self, players: PlayerMoves, round: int) -> None:
        """Each policy takes the place of the one before it; the oldest is gone."""
        new = ("policy", *self.players)
        for source, target in reversed([*zip(new, self.players, strict=False)]):
            players.copy_(source, target)
