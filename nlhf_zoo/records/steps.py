"""A proximal step of a plan, and the batch that its loss is computed from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

# A geometric mixture of players, prod_i pi_i^{w_i} / Z, written as {player: weight}; weights sum
# to 1.
Mixture = Mapping[str, float]


def starts_as(player: str) -> str:
    """Whose copy a player starts as: the magnet, which stands in for the reference, is its copy."""
    return "reference" if player == "magnet" else "policy"


@dataclass(frozen=True)  # no slots: jsonargparse reads the defaults by vars()
class Decoding:
    """How responses are drawn from a policy's distribution.

    Args:
        temperature: divides the logits; ``inf`` is the uniform distribution over the support.
        top_k: keep the k most probable next tokens (actions, for a table); 0 keeps all.
        top_p: keep the smallest set whose probability reaches this share; 1 keeps all.
        min_p: drop what is less probable than this share of the most probable; 0 drops nothing.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, but it is {self.temperature}")
        if self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p < 1:
            raise ValueError(
                "decoding needs top_k >= 0, 0 < top_p <= 1 and 0 <= min_p < 1, but it has "
                f"top_k={self.top_k}, top_p={self.top_p}, min_p={self.min_p}"
            )

    @property
    def is_whole(self) -> bool:
        """Whether no response is left out, tempered or not."""
        return (self.top_k, self.top_p, self.min_p) == (0, 1.0, 0.0)

    @property
    def is_plain(self) -> bool:
        """Whether responses come from the policy's own distribution, untempered and whole."""
        return (self.temperature, self.top_k, self.top_p, self.min_p) == (1.0, 0, 1.0, 0.0)


PLAIN = Decoding()
GREEDY = Decoding(top_k=1)  # the limit of temperature 0


@dataclass(frozen=True, slots=True)
class ProximalStep:
    r"""One step of an algorithm's plan.

    .. math:: \pi_{new} = \arg\max_\pi \; s \sum_j a_j P(\pi > o_j) - KL(\pi \| c)
              \iff \log \pi_{new} = \log c + s \sum_j a_j P o_j + const

    By score, a score r of each response stands where the sum stands.

    Args:
        centre: c, a geometric mixture of players.
        payoff: ((a_j, o_j), ...), coefficients and opponents; none by score.
        step_size: s.
        writes: the player that the step makes.
        sampler: who draws the responses that are scored.
        scored: how these are decoded.
        opponent: how the opponents' responses are decoded.
        self_play: when sampled, the scored responses are the opponents too: K (K - 1) / 2 queries.
        pairs: the loss wants the scored responses compared with each other, pair by pair.
        gradient_steps: optimiser steps, where the step is realised by gradients on fresh rollouts.
        reweighted: on a rollout that is used more than once, the step has none of its own: it takes
            the responses and the answers of the step before, and weighs these responses as
            opponents by o / sampler.
        reference: the player that stands for mu in this step.
        explored: who draws further responses, plainly and as many as are scored, which nobody
            judges: the loss takes their log-probability under the policy. None draws none.
        normalised: in self-play, the payoff is divided by its standard deviation under the sampler.
        greedy: one of the scored responses, when sampled, is the most probable one of the sampler.
        chosen: the loss takes two of them alone, when sampled, which were chosen by the answers.
        by_score: the payoff is the oracle's score of each response, which has no opponent.
    """

    centre: Mixture
    payoff: tuple[tuple[float, Mixture], ...]
    step_size: float
    writes: str = "policy"
    sampler: Mixture = field(default_factory=lambda: {"policy": 1.0})
    scored: Decoding = PLAIN
    opponent: Decoding = PLAIN
    self_play: bool = False
    pairs: bool = False
    gradient_steps: int = 1
    reweighted: bool = False
    reference: str = "reference"
    explored: Mixture | None = None
    normalised: bool = False
    greedy: bool = False
    chosen: bool = False
    by_score: bool = False

    def __post_init__(self) -> None:
        for name, mixture in [
            ("centre", self.centre),
            ("sampler", self.sampler),
            *(("opponent", o) for _, o in self.payoff),
            *([("explored", self.explored)] if self.explored is not None else []),
        ]:
            if not math.isclose(sum(mixture.values()), 1.0, abs_tol=1e-9):
                raise ValueError(
                    f"the weights of a mixture sum to 1, but the {name} is {dict(mixture)}"
                )
            if min(mixture.values()) < -1e-9:
                raise ValueError(
                    f"the weights of a mixture are not negative, but the {name} is "
                    f"{dict(mixture)}: take a smaller step"
                )
        if self.gradient_steps < 1:
            raise ValueError(
                f"a proximal step takes at least one gradient step, not {self.gradient_steps}"
            )
        if self.by_score == bool(self.payoff):
            raise ValueError("a step has opponents, or else it is taken by score")
        if self.by_score and (self.self_play or self.pairs or self.reweighted):
            raise ValueError(
                "a step by score has no pairs: neither self_play, pairs nor reweighted"
            )
        if self.self_play and (
            self.payoff[0][1] != self.sampler
            or len(self.payoff) != 1
            or self.scored != self.opponent
            or self.greedy
        ):
            raise ValueError(
                "self-play needs one opponent, which is the sampler with the same decoding"
            )
        if self.normalised and not self.self_play:
            raise ValueError("a payoff is normalised within the group of self-play alone")

    @property
    def among_themselves(self) -> bool:
        """Whether the scored responses, when sampled, are compared with each other."""
        return self.self_play or self.pairs

    @property
    def draws_policy(self) -> bool:
        """Whether what the loss takes are independent draws of the policy's own law."""
        apart = self.greedy or self.chosen
        return dict(self.sampler) == {"policy": 1.0} and self.scored.is_plain and not apart

    def drawn_by(self, sampler: Mixture | None = None, greedy: bool = False) -> ProximalStep:
        """The step on other responses: those of another sampler, or the greedy one among them.

        They are no longer the opponent's own, so that in self-play opponents are drawn, too.

        Args:
            sampler: who draws; None is who drew before.
            greedy: whether one response is the most probable one of the sampler.
        """
        sampler = self.sampler if sampler is None else sampler
        if dict(sampler) == dict(self.sampler) and greedy == self.greedy:
            return self
        return replace(self, sampler=sampler, greedy=greedy, self_play=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """What a loss is computed from, for one proximal step.

    Only ``log_prob`` and ``explored_log_prob`` carry gradient.

    Args:
        log_prob: log pi_theta(y_bk | x_b) [B, K], with gradient.
        centre_log_prob: sum_i w_i log pi_i(y_bk) over the players of the centre, up to a constant
            [B, K].
        reference_log_prob: log mu(y_bk) of the step's ``reference`` player [B, K].
        payoff: q(y_bk), estimate of sum_j a_j (P o_j)(y_bk), or a score [B, K]. In self-play it
            averages over all K responses, oneself included with P(y > y) = 1/2: differences of q
            are then unbiased.
        weight: [B, K], sums to 1 over the valid responses of a prompt, 0 where invalid.
        beta: temperature of the game.
        enumerated: whether ``weight`` holds probabilities of all responses, rather than 1/K.
        self_play: whether the responses are their own opponents.
        preference: P(y_bk > y_bk'), or what the game pays for it [B, K, K], where the responses
            were compared with each other.
        pair_weight: [B, K, K], sums to 1 over the valid pairs, where ``preference`` is there.
        sampler_log_prob: log-probability under the law that drew the responses [B, K], where a
            rollout serves several gradient steps; None where it is fresh.
        clip: how far the ratio pi_theta / sampler is followed away from 1 by a policy gradient;
            None follows it everywhere.
        payoff_bound: largest distance of ``preference`` from 1/2; above 1/2 it is no probability.
        explored_log_prob: log pi_theta of the responses that the step's ``explored`` has drawn, who
            are not judged [B, K], with gradient; None where it names nobody.
        explored_weight: their weights in an expectation [B, K]; 0 of a prompt that is not judged.
        length: tokens of each response, its end among them [B, K]; None where nobody counted them.
    """

    log_prob: Tensor
    centre_log_prob: Tensor
    reference_log_prob: Tensor
    payoff: Tensor
    weight: Tensor
    beta: float
    enumerated: bool
    self_play: bool = False
    preference: Tensor | None = None
    pair_weight: Tensor | None = None
    sampler_log_prob: Tensor | None = None
    clip: float | None = None
    payoff_bound: float = 0.5
    explored_log_prob: Tensor | None = None
    explored_weight: Tensor | None = None
    length: Tensor | None = None

    @property
    def reused(self) -> bool:
        """Whether the rollout serves several gradient steps."""
        return self.sampler_log_prob is not None

    @property
    def ratio(self) -> Tensor:
        """pi_theta / sampler of each response, with gradient [B, K]; 1 of a fresh rollout."""
        if self.sampler_log_prob is None:
            return (self.log_prob - self.log_prob.detach()).exp()
        return (self.log_prob - self.sampler_log_prob).exp()

    @property
    def payoff_of_others(self) -> Tensor:
        """The payoff q with oneself left out of the opponents [B, K]: unbiased with baseline 1/2.

        In self-play q holds the answer 1/2 to "y > y"; over K opponents that shrinks q - 1/2 by
        (K - 1) / K, and a loss with a fixed baseline would solve the game at another temperature.
        """
        if not self.self_play or self.enumerated:
            return self.payoff
        num = (self.weight > 0).sum(-1, keepdim=True)
        return 0.5 + (self.payoff - 0.5) * num / (num - 1).clamp(min=1)
