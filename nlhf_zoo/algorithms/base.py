"""The form of every algorithm: a short plan of proximal steps, and a loss that realises them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import ClassVar, Protocol

from torch import Tensor

from nlhf_zoo.algorithms.products import products_of_a_round
from nlhf_zoo.algorithms.surrogates import Reuse, proximal_regression, reuse_of
from nlhf_zoo.records import Batch, Mixture, ProximalStep

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
        seeks_equilibrium: whether it is one of the zoo, which look for the equilibrium of the game,
            and not for an answer to one policy.
        temperatures: arguments that are in units of the payoff, as the game's beta is; null, or 0,
            stays.
        surrogate: the loss that realises a step by gradients, None for the default; where another
            one is computed, ``loss`` is overridden.
    """

    paper: ClassVar[str]
    seeks_equilibrium: ClassVar[bool] = True
    temperatures: ClassVar[tuple[str, ...]] = ()
    surrogate: Surrogate | None = None

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
    def clips(self) -> bool:
        """Whether an importance ratio is followed only as far as the rollout's ``clip``."""
        return True

    @property
    def warning(self) -> str | None:
        """A sentence for who runs it with these arguments; ``fit`` and ``doctor`` say it."""
        return None

    @property
    def by_score(self) -> bool:
        """Whether its steps take scores of single responses, which an oracle must then have."""
        return any(step.by_score for step in self.steps(1e-9, 0))

    @property
    def players(self) -> tuple[str, ...]:
        """The players that it needs beside ``policy`` and ``reference``."""
        return ()

    @property
    def fixed_players(self) -> tuple[str, ...]:
        """Those of its players that are meant to stay what the policy is at the start."""
        return ()

    def in_units(self, unit: float) -> PolicyOptimizer:
        """Itself where payoffs are measured in a unit: given temperatures are divided by it."""
        given = {name: value for name in self.temperatures if (value := vars(self)[name])}
        if unit == 1 or not given:
            return self
        scaled = copy(self)
        vars(scaled).update({name: value / unit for name, value in given.items()})
        return scaled

    @abstractmethod
    def steps(self, beta: float, round: int) -> Sequence[ProximalStep]:
        """The plan of one round.

        Args:
            beta: temperature of the game.
            round: 0 for the first round.
        """

    @property
    def paper_surrogate(self) -> Surrogate:
        """The loss of the paper, which is the default on fresh rollouts."""
        return proximal_regression

    def chosen_surrogate(self, reused: bool) -> Surrogate:
        """The surrogate that was given, or the default.

        That is the paper's; where a rollout serves several gradient steps, and the paper's is not
        meant for that, ``proximal_regression``.
        """
        if (given := self.surrogate) is not None:
            return given
        paper = self.paper_surrogate
        return proximal_regression if reused and reuse_of(paper) != "any" else paper

    @property
    def reuse(self) -> Reuse:
        """What its loss may learn from, where a rollout serves several gradient steps."""
        return reuse_of(self.chosen_surrogate(reused=True))

    def loss(self, step: ProximalStep, batch: Batch) -> Tensor:
        """The loss of one proximal step for each prompt, [B]: that of the surrogate."""
        return self.chosen_surrogate(batch.reused)(step, batch)

    def queries(
        self,
        num_responses: int,
        num_opponents: int,
        enumerated: bool,
        reused: bool = False,
        degree: float | None = None,
        sampler: Mixture | None = None,
        greedy: bool = False,
    ) -> int:
        """Preference queries of one round, for each prompt.

        One product P o is one query when responses are enumerated, and one of players that have
        not moved since is remembered, and free; each distinct pair is one when they are sampled.
        Of an adaptive algorithm it is a round that is accepted; the first costs one more, and one
        that is rejected costs one.
        A rollout that is ``reused`` is asked about once a proximal step. A comparison design asks
        about ``degree`` pairs of each response, in the mean; None is all of them. A ``sampler`` of
        the rollout's own, or a ``greedy`` response, is not the opponent: there is no self-play.
        A score is one query, as those of all responses are when these are enumerated.
        """
        if enumerated:
            return products_of_a_round(self)
        others = num_responses - 1 if degree is None else degree
        distinct = int(num_responses * others) // 2
        pairs = int(num_responses * (num_opponents if degree is None else degree))

        def asked(step: ProximalStep) -> int:
            if step.by_score:
                return num_responses
            return distinct if step.among_themselves else pairs * len(step.payoff)

        # The count is the same at every beta, and every plan admits a small one.
        return sum(
            (1 if reused else step.gradient_steps) * asked(step)
            for step in (one.drawn_by(sampler, greedy) for one in self.steps(1e-9, 0))
            if not (reused and step.reweighted)
        )

    def end_round(self, players: PlayerMoves, round: int) -> None:  # noqa: B027  # optional
        """Move the anchor, the magnet, ... after the last step of a round. Nothing by default."""
