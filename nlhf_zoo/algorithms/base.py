"""The form of every algorithm: a short plan of proximal steps, and a loss that realises them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from nlhf_zoo.algorithms.products import products_of_a_round
from nlhf_zoo.records import Batch, ProximalStep

# A loss with gradient for one proximal step: (step, batch) -> [B].
Surrogate = Callable[[ProximalStep, Batch], Tensor]


class PlayerMoves(Protocol):
    """What ``end_round`` may do to the players; policies and the closed form both offer it."""

    def copy_(self, source: str, target: str) -> None:
        """Make ``target`` equal to ``source``."""

    def lerp_(self, source: str, target: str, weight: float) -> None:
        """Move ``target`` by ``weight`` towards ``source``."""


Players = PlayerMoves  # its name in version 0.1, by which users import it


class PolicyOptimizer(ABC):
    """An optimiser of policies; one final subclass an algorithm.

    Class attributes and properties are declarations: the shared tests hold an algorithm to them.

    Attributes:
        paper: where the algorithm comes from.
        surrogate: the loss that realises a step by gradients; where another one is computed,
            ``loss`` is overridden.
    """

    paper: ClassVar[str]
    surrogate: Surrogate

    @property
    @abstractmethod
    def last_iterate(self) -> bool:
        """Whether the last iterate goes to the equilibrium of the regularised game.

        If it is not scheduled, the equilibrium is then a fixed point.
        """

    @property
    def closed_form(self) -> bool:
        """Whether a table can take the steps exactly."""
        return True

    @property
    def scheduled(self) -> bool:
        """Whether the plan depends on the round."""
        return False

    @property
    def adaptive(self) -> bool:
        """Whether games find their own step sizes, in closed form, by an accept test.

        Then it is an ``AdaptiveAlgorithm`` too, of ``nlhf_zoo.algorithms.adaptive``.
        """
        return False

    @property
    def players(self) -> tuple[str, ...]:
        """The players that it needs beside ``policy`` and ``reference``."""
        return ()

    @abstractmethod
    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """The plan of one round.

        Args:
            beta: temperature of the game.
            round: 0 for the first round.
        """

    def loss(self, step: ProximalStep, batch: Batch) -> Tensor:
        """The loss of one proximal step for each prompt, [B]: that of the surrogate."""
        return self.surrogate(step, batch)

    def queries(self, num_responses: int, num_opponents: int, enumerated: bool) -> int:
        """Preference queries of one round, for each prompt.

        One product P o is one query when responses are enumerated, and one of players that have
        not moved since is remembered, and free; each distinct pair is one when they are sampled.
        Of an adaptive algorithm it is a round that is accepted; the first costs one more, and one
        that is rejected costs one.
        """
        if enumerated:
            return products_of_a_round(self)
        pairs = num_responses * num_opponents
        distinct = num_responses * (num_responses - 1) // 2
        # The count is the same at every beta, and every plan admits a small one.
        return sum(
            step.gradient_steps * (distinct if step.self_play else pairs * len(step.payoff))
            for step in self.steps(1e-9, 0)
        )

    def end_round(self, players: PlayerMoves, round: int) -> None:  # noqa: B027  # optional
        """Move the anchor, the magnet, ... after the last step of a round. Nothing by default."""
