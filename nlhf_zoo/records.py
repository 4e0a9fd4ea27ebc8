"""What the parts of a game hand to each other: frozen records of tensors, shapes checked.

Letters: B prompts, K responses, L opponents, T tokens, N actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

# A geometric mixture of players, prod_i pi_i^{w_i} / Z, written as {player: weight}; weights sum
# to 1.
Mixture = Mapping[str, float]

# What was said so far: messages with `role` and `content`.
Conversation = Sequence[Mapping[str, str]]


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
        """Refuse values outside their range.

        Raises:
            ValueError: a value is outside its range.
        """
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, but it is {self.temperature}")
        if self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p < 1:
            raise ValueError(
                "decoding needs top_k >= 0, 0 < top_p <= 1 and 0 <= min_p < 1, but it has "
                f"top_k={self.top_k}, top_p={self.top_p}, min_p={self.min_p}"
            )

    @property
    def is_plain(self) -> bool:
        """Whether responses come from the policy's own distribution, untempered and whole."""
        return (self.temperature, self.top_k, self.top_p, self.min_p) == (1.0, 0, 1.0, 0.0)


PLAIN = Decoding()


@dataclass(frozen=True, slots=True)
class Prompts:
    """A batch of prompts.

    Args:
        ids: which prompts these are, LongTensor[B]; for a table the row of the game.
        tokens: token ids [B, S], None for a table.
        mask: 1 where ``tokens`` is not padding [B, S], None for a table.
        text: the prompts as text, where there is one; of a conversation, its last message.
        conversations: the prompts as conversations, B lists of messages with ``role`` and
            ``content``; None for prompts that are plain text or rows of a table.
    """

    ids: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
    text: Sequence[str] | None = None
    conversations: Sequence[Conversation] | None = None

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: shapes disagree.
        """
        if self.ids.dim() != 1 or self.ids.dtype != torch.long:
            raise ValueError(
                f"Prompts.ids must be long [B], not {self.ids.dtype} {[*self.ids.shape]}"
            )
        if (self.tokens is None) != (self.mask is None):
            raise ValueError("Prompts.tokens and Prompts.mask come together or not at all")
        for name in ("text", "conversations"):
            if (words := getattr(self, name)) is not None and len(words) != len(self.ids):
                raise ValueError(f"Prompts.{name} has {len(words)} entries, not {len(self.ids)}")
        if self.tokens is None or self.mask is None:
            return
        if self.tokens.shape != self.mask.shape or self.tokens.shape[:1] != self.ids.shape:
            raise ValueError(
                f"Prompts.tokens {[*self.tokens.shape]} and mask {[*self.mask.shape]} must be "
                f"[B, S] with B = {len(self.ids)}"
            )

    def __len__(self) -> int:
        """The number of prompts, B."""
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> Prompts:
        """Some of the prompts, in the padding of all."""
        kept = torch.tensor([*rows], dtype=torch.long, device=self.ids.device)
        return Prompts(
            ids=self.ids[kept],
            tokens=None if self.tokens is None else self.tokens[kept],
            mask=None if self.mask is None else self.mask[kept],
            text=None if self.text is None else [self.text[i] for i in rows],
            conversations=(
                None if self.conversations is None else [self.conversations[i] for i in rows]
            ),
        )

    def split(self, parts: int) -> list[Prompts]:
        """These prompts in parts of nearly equal size; fewer parts where there are fewer prompts.

        Args:
            parts: how many.
        """
        parts = min(parts, len(self))
        if parts < 2:
            return [self]
        ends = [len(self) * part // parts for part in range(parts + 1)]
        return [self.take(range(*both)) for both in pairwise(ends)]

    def to(self, device: torch.device | str) -> Prompts:
        """These prompts on another device (Lightning moves batches by this method)."""
        move = {
            n: t.to(device)
            for n in ("ids", "tokens", "mask")
            if (t := getattr(self, n)) is not None
        }
        return replace(self, **move)


@dataclass(frozen=True, slots=True)
class Responses:
    """K responses to each of B prompts, with the weight of each in an expectation.

    Args:
        tokens: LongTensor[B, K, T]; T = 1 for tables, where the token is the action.
        mask: bool [B, K, T], True where a token counts.
        weight: [B, K], sums to 1 over K: probabilities when all responses are enumerated, 1/K when
            sampled.
        enumerated: whether these are all the responses there are.
        text: the responses as text, B lists of K, where there is one.
        version: version of the weights that drew them; training on stale ones is refused unless
            asked for.
        truncated: bool [B, K], True where a response was cut at the limit of tokens before it
            ended; None where responses cannot be cut.
        log_prob: what the sampler itself says of their log-probability, untempered and whole
            [B, K]; for comparison alone, never for a loss. None where it says nothing.
    """

    tokens: Tensor
    mask: Tensor
    weight: Tensor
    enumerated: bool = False
    text: Sequence[Sequence[str]] | None = None
    version: int = 0
    truncated: Tensor | None = None
    log_prob: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: shapes disagree.
        """
        if self.tokens.dim() != 3 or self.tokens.shape != self.mask.shape:
            shapes = f"{[*self.tokens.shape]} and mask {[*self.mask.shape]}"
            raise ValueError(f"Responses.tokens {shapes} must both be [B, K, T]")
        if self.weight.shape != self.tokens.shape[:2]:
            shapes = f"{[*self.weight.shape]} must be [B, K] = {[*self.tokens.shape[:2]]}"
            raise ValueError(f"Responses.weight {shapes}")
        for name in ("truncated", "log_prob"):
            if (per := getattr(self, name)) is not None and per.shape != self.weight.shape:
                shapes = f"{[*per.shape]} must be [B, K] = {[*self.weight.shape]}"
                raise ValueError(f"Responses.{name} {shapes}")

    @classmethod
    def joined(cls, parts: Sequence[Responses]) -> Responses:
        """Sampled responses to different prompts as one record.

        Args:
            parts: of the same number of responses and the same version; the shorter ones are padded
                behind their end.
        """
        longest = max(part.tokens.shape[2] for part in parts)

        def padded(tensor: Tensor) -> Tensor:
            return pad(tensor, (0, longest - tensor.shape[2]))

        def all_of(name: str) -> Tensor | None:
            found = [getattr(part, name) for part in parts]
            return None if any(one is None for one in found) else torch.cat(found)

        texts = [part.text for part in parts]
        return cls(
            tokens=torch.cat([padded(part.tokens) for part in parts]),
            mask=torch.cat([padded(part.mask) for part in parts]),
            weight=torch.cat([part.weight for part in parts]),
            text=None if None in texts else [row for text in texts for row in text or ()],
            version=parts[0].version,
            truncated=all_of("truncated"),
            log_prob=all_of("log_prob"),
        )

    @property
    def num(self) -> int:
        """The number of responses a prompt, K."""
        return self.tokens.shape[1]

    @property
    def actions(self) -> Tensor:
        """The actions of a table [B, K].

        Raises:
            ValueError: responses have more than one token.
        """
        if self.tokens.shape[2] != 1:
            raise ValueError(
                f"a table's responses have one token, these have {self.tokens.shape[2]}"
            )
        return self.tokens[:, :, 0]

    def pair_weight(self) -> Tensor:
        """Weight of each pair in an expectation over two independent responses, [B, K, K].

        w w' when enumerated; 1 / (K (K - 1)) off the diagonal when sampled, so that a sum with
        these weights is unbiased for the enumerated one.

        Raises:
            ValueError: there is but one sampled response, so no pair.
        """
        if self.enumerated:
            return self.weight[:, :, None] * self.weight[:, None, :]
        if self.num < 2:
            raise ValueError(
                "a loss on pairs needs two responses a prompt: set num_responses to 2 or more"
            )
        off_diagonal = 1 - torch.eye(self.num, dtype=self.weight.dtype, device=self.weight.device)
        return (off_diagonal / (self.num * (self.num - 1))).expand(len(self.weight), -1, -1)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the oracle said.

    Args:
        preference: P(first_k > second_l | prompt_b) in [0, 1], [B, K, L]. Meaningless where
            invalid.
        valid: bool [B, K, L]; False where no answer could be had. Such an answer is never a label.
    """

    preference: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: shapes disagree.
        """
        if self.preference.dim() != 3 or self.preference.shape != self.valid.shape:
            raise ValueError(
                f"Comparison.preference {[*self.preference.shape]} and valid {[*self.valid.shape]} "
                "must both be [B, K, L]"
            )

    def average(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted average over the second responses, and its validity, [B, K] both.

        Weights are renormalised over the valid answers; a response without any valid answer is
        invalid.

        Args:
            weight: of the second responses [B, L].
        """
        weight = weight[:, None, :] * self.valid
        total = weight.sum(-1)
        preference = torch.where(self.valid, self.preference, torch.zeros_like(self.preference))
        return (weight * preference).sum(-1) / total.clamp(
            min=torch.finfo(total.dtype).tiny
        ), total > 0


@dataclass(frozen=True, slots=True)
class ProximalStep:
    r"""One step of an algorithm's plan.

    .. math:: \pi_{new} = \arg\max_\pi \; s \sum_j a_j P(\pi > o_j) - KL(\pi \| c)
              \iff \log \pi_{new} = \log c + s \sum_j a_j P o_j + const

    Args:
        centre: c, a geometric mixture of players.
        payoff: ((a_j, o_j), ...), coefficients and opponents.
        step_size: s.
        writes: the player that the step makes.
        sampler: who draws the responses that are scored.
        scored: how these are decoded.
        opponent: how the opponents' responses are decoded.
        self_play: when sampled, the scored responses are the opponents too: K (K - 1) / 2 queries.
        pairs: the loss wants the scored responses compared with each other, pair by pair.
        gradient_steps: optimiser steps, where the step is realised by gradients.
        reference: the player that stands for mu in this step.
    """

    centre: Mixture
    payoff: tuple[tuple[float, Mixture], ...]
    step_size: float
    writes: str = "policy"
    sampler: Mixture = None  # type: ignore[assignment]  # None is replaced by {"policy": 1} below
    scored: Decoding = PLAIN
    opponent: Decoding = PLAIN
    self_play: bool = False
    pairs: bool = False
    gradient_steps: int = 1
    reference: str = "reference"

    def __post_init__(self) -> None:
        """Fill in the sampler and check that the step can be played.

        Raises:
            ValueError: the step contradicts itself.
        """
        if self.sampler is None:
            object.__setattr__(self, "sampler", {"policy": 1.0})
        for name, mixture in [
            ("centre", self.centre),
            ("sampler", self.sampler),
            *(("opponent", o) for _, o in self.payoff),
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
        if self.self_play and (
            self.payoff[0][1] != self.sampler
            or len(self.payoff) != 1
            or self.scored != self.opponent
        ):
            raise ValueError(
                "self-play needs one opponent, which is the sampler with the same decoding"
            )


@dataclass(frozen=True, slots=True)
class Batch:
    """What a loss is computed from, for one proximal step; only ``log_prob`` carries gradient.

    Args:
        log_prob: log pi_theta(y_bk | x_b) [B, K], with gradient.
        centre_log_prob: sum_i w_i log pi_i(y_bk) over the players of the centre, up to a constant
            [B, K].
        reference_log_prob: log mu(y_bk) of the step's ``reference`` player [B, K].
        payoff: q(y_bk), estimate of sum_j a_j (P o_j)(y_bk) [B, K]. In self-play it averages over
            all K
            responses, oneself included with P(y > y) = 1/2: differences of q are then unbiased.
        weight: [B, K], sums to 1 over the valid responses of a prompt, 0 where invalid.
        beta: temperature of the game.
        enumerated: whether ``weight`` holds probabilities of all responses, rather than 1/K.
        self_play: whether the responses are their own opponents.
        preference: P(y_bk > y_bk') [B, K, K], where the responses were compared with each other.
        pair_weight: [B, K, K], sums to 1 over the valid pairs, where ``preference`` is there.
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

    @property
    def payoff_of_others(self) -> Tensor:
        """Q with oneself left out of the opponents [B, K]: unbiased with baseline 1/2.

        In self-play q holds the answer 1/2 to "y > y"; over K opponents that shrinks q - 1/2 by
        (K - 1) / K, and a loss with a fixed baseline would solve the game at another temperature.
        """
        if not self.self_play or self.enumerated:
            return self.payoff
        num = (self.weight > 0).sum(-1, keepdim=True)
        return 0.5 + (self.payoff - 0.5) * num / (num - 1).clamp(min=1)
