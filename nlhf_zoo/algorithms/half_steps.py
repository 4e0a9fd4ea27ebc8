"""The form of extragradient methods: two proximal steps a round, both from its start."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import replace

from nlhf_zoo.algorithms.adaptive import Eta, accepts, eta_or_adaptive
from nlhf_zoo.algorithms.base import PolicyOptimizer, Surrogate
from nlhf_zoo.records import Decoding, Mixture, ProximalStep


class Extragradient(PolicyOptimizer, ABC):
    """Two proximal steps a round: against its start, and again against what came of that.

    Args:
        eta: step size, None for the default, or "adaptive".
        surrogate: loss of a proximal step; None is the default.
        scored: decoding of the responses that are scored.
        opponent: decoding of the opponents' responses.
        self_play: each half step's opponents are its scored responses too.
        reweighted: the second half step takes the responses and the answers of the first.

    Raises:
        ValueError: in self-play the decodings differ, or it is reweighted without self-play.
    """

    last_iterate = True
    accepts = staticmethod(accepts)

    def __init__(
        self,
        eta: Eta,
        surrogate: Surrogate | None,
        scored: Decoding,
        opponent: Decoding,
        self_play: bool,
        reweighted: bool,
    ) -> None:
        if self_play and scored != opponent:
            raise ValueError(
                "in self-play the opponents are the scored responses: give scored and opponent the "
                "same decoding"
            )
        if reweighted and not self_play:
            raise ValueError(
                "reweighted takes the answers of the first half step's responses among themselves: "
                "set self_play to true too"
            )
        self.eta = eta_or_adaptive(eta)
        self.surrogate = surrogate
        self.scored = scored
        self.opponent = opponent
        self.self_play = self_play
        self.reweighted = reweighted

    @property
    def adaptive(self) -> bool:
        """Whether each game finds its own step size."""
        return self.eta == "adaptive"

    def eta_or(self, default: float) -> float:
        """The step size that was given, or the default."""
        return self.eta if isinstance(self.eta, float | int) else default

    def half_steps(
        self, start: str, centre: Mixture, step_size: float, gradient_steps: int = 1
    ) -> Sequence[ProximalStep]:
        """The plan of a round.

        In self-play a half step's responses are drawn by its opponent, and compared among
        themselves: K (K - 1) / 2 queries. A regression on pairs has the step as its minimiser,
        whoever drew them.

        Args:
            start: the player that both half steps start from.
            centre: of both.
            step_size: of both.
            gradient_steps: of each, on fresh rollouts.
        """
        first, second = (
            ProximalStep(
                centre=centre,
                payoff=((1.0, {opponent: 1.0}),),
                step_size=step_size,
                writes=writes,
                scored=self.scored,
                opponent=self.opponent,
                gradient_steps=gradient_steps,
            )
            for opponent, writes in [(start, "lookahead"), ("lookahead", "policy")]
        )
        if self.self_play:
            first = replace(first, sampler={start: 1.0}, self_play=True)
            sampler = start if self.reweighted else "lookahead"
            second = replace(
                second,
                sampler={sampler: 1.0},
                self_play=not self.reweighted,
                reweighted=self.reweighted,
            )
        return [first, second]
