r"""The outer loop of MPO (arXiv 2410.16714) and COMAL (arXiv 2410.23223).

Any algorithm of the regularised game runs inside, with `magnet` in place of the reference; every M
rounds

    magnet <- policy

so that each stretch of them is one proximal-point step, and the last iterate goes to an equilibrium
of the *unregularised* game. Metrics of the regularised game are still about its own reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

from torch import Tensor

from nlhf_zoo.algorithms.base import PlayerMoves, PolicyOptimizer
from nlhf_zoo.algorithms.checks import at_least_one
from nlhf_zoo.records import Batch, ProximalStep


def _of_inner(name: str) -> Any:
    """What the algorithm inside declares."""
    return property(attrgetter(f"inner.{name}"))


class MovingMagnet(PolicyOptimizer):
    """MPO / COMAL: an algorithm whose reference is a magnet that follows the policy.

    Args:
        inner: the algorithm inside.
        every: rounds between two moves of the magnet.
    """

    paper = "arXiv:2410.23223"
    last_iterate = False  # of the regularised game; it solves the unregularised one
    closed_form = _of_inner("closed_form")
    scheduled = _of_inner("scheduled")
    adaptive = _of_inner("adaptive")
    clips = _of_inner("clips")
    warning = _of_inner("warning")
    fixed_players = _of_inner("fixed_players")
    reuse = _of_inner("reuse")
    queries = _of_inner("queries")

    def __init__(self, inner: PolicyOptimizer, every: int = 400) -> None:
        self.inner = inner
        self.every = at_least_one(every, "every")
        self.accepts = getattr(inner, "accepts", None)  # which games take an adaptive step

    @property
    def players(self) -> tuple[str, ...]:
        """Those of the algorithm inside, and the magnet."""
        return (*self.inner.players, "magnet")

    def in_units(self, unit: float) -> MovingMagnet:
        """With the algorithm inside in a unit."""
        inner = self.inner.in_units(unit)
        return self if inner is self.inner else MovingMagnet(inner, self.every)

    def steps(self, beta: float, round: int, step_size: float | None = None) -> list[ProximalStep]:
        """The plan inside, with `magnet` for `reference`; schedules start anew with each magnet."""
        given = () if step_size is None else (step_size,)
        return [
            replace(
                step,
                centre=_with_magnet(step.centre),
                payoff=tuple((a, _with_magnet(o)) for a, o in step.payoff),
                sampler=_with_magnet(step.sampler),
                explored=None if step.explored is None else _with_magnet(step.explored),
                reference="magnet",
            )
            for step in self.inner.steps(beta, round % self.every, *given)
        ]

    def loss(self, step: ProximalStep, batch: Batch) -> Tensor:
        """The loss of the algorithm inside."""
        return self.inner.loss(step, batch)

    def end_round(self, players: PlayerMoves, round: int) -> None:
        """The algorithm's own moves, then the magnet's, every M rounds."""
        self.inner.end_round(players, round)
        if (round + 1) % self.every == 0:
            players.copy_("policy", "magnet")


def _with_magnet(mixture: Mapping[str, float]) -> dict[str, float]:
    return {"magnet" if who == "reference" else who: weight for who, weight in mixture.items()}
