r"""Steps in games whose payoffs have another range than a preference's.

The game of payoff A = P - 1/2 at beta is that of A / c at beta / c: a policy's gain in the one is c
times that in the other. With c = 2 max |A| the second has the range of preferences, for which step
sizes are derived, so its plan is the one that is taken:

    s A = (s c) (A / c)        s beta = (s c) (beta / c)

a step s c of the second game is a step s of the first. So every step size is measured in units of
1 / c, whether it is an algorithm's default or given, and each run is that of the second game. A
temperature that an algorithm is given beside the game's (RSPO's `reverse_kl`) is divided as beta.

The default of EGPO and Nash-MP becomes s = 2 / (c + 2 beta), for Nash-MP eta = 2 beta / c, with

    KL(pi* || pi_k) <= (1 + 2 beta / c)^-k KL(pi* || mu)

after k rounds. It is derived as for c = 1: as <A u, v> <= max |A| |u|_1 |v|_1, Pinsker's inequality
gives that a round contracts by 1 - s beta if s^2 max |A|^2 <= 1 - s beta, and 2 / (c + 2 beta) does
so. Nash-MP's eta is a ratio of temperatures, and one that is given is the same in both games.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nlhf_zoo.algorithms.base import PolicyOptimizer
from nlhf_zoo.records import ProximalStep


def scaled_steps(
    algorithm: PolicyOptimizer, beta: float, round: int, payoff_bound: float, *step_size: float
) -> Sequence[ProximalStep]:
    """The plan of a round in a game whose payoffs lie within ``payoff_bound`` of 1/2.

    Args:
        algorithm: whose plan.
        beta: temperature of the game.
        round: 0 for the first round.
        payoff_bound: the largest |payoff - 1/2|; of preferences it is 1/2, and the plan is the
            algorithm's own.
        step_size: of an adaptive algorithm, in units of 1 / (2 payoff_bound).
    """
    scale = 2 * payoff_bound
    steps = algorithm.in_units(scale).steps(beta / scale, round, *step_size)
    if scale == 1:
        return steps
    return [
        step if step.normalised else replace(step, step_size=step.step_size / scale)
        for step in steps  # a normalised payoff is the same in both games
    ]
