"""What ``nlhf solve`` has found, for print, file and figure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nlhf_zoo.cli.solve.bootstrap import Bootstrap
from nlhf_zoo.cli.solve.playing import Run
from nlhf_zoo.cli.solve.reading import Game
from nlhf_zoo.cli.solve.structure import Structure
from nlhf_zoo.solvers import Solution, win_rates
from nlhf_zoo.solvers.payoffs import PayoffName


@dataclass(frozen=True, slots=True)
class Solved:
    """Of C games of at most N alternatives.

    Args:
        game: what was solved.
        beta: at this temperature.
        payoff: by its name.
        nash: the equilibria.
        ends: the least and the largest probability of each alternative in any equilibrium [C, N].
        structure: who beats whom by the preferences.
        bootstrap: what resamples of the voters say, where some were drawn.
        run: what an algorithm did, where one was played.
        algorithm: its name.
    """

    game: Game
    beta: float
    payoff: PayoffName
    nash: Solution
    ends: tuple[Tensor, Tensor]
    structure: Structure
    bootstrap: Bootstrap | None = None
    run: Run | None = None
    algorithm: str = ""

    @property
    def rates(self) -> Tensor:
        """What each alternative gets against the equilibrium [C, N]."""
        return win_rates(self.game.preference, self.nash.log_policy)

    @property
    def of_rates(self) -> str:
        """What they are called: of another payoff than the preference they are no share of wins."""
        return "win rate" if self.payoff == "identity" else "payoff"
