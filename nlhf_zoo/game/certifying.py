"""Exploitability of a policy from samples: who is drawn, what is asked, and the estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.oracles.models.response import ResponseTextModelOracle
from nlhf_zoo.oracles.tables.base import TableOracle
from nlhf_zoo.records import Comparison, Prompts, Responses
from nlhf_zoo.solvers import ExploitabilityEstimates, least_opponents, sampled_exploitability

# Whose opponents: each response's own, or the same of all, where an answer costs nothing.
Form = Literal["pairs", "embeddings"]
_ROWS = 512  # responses that are drawn or scored at a time


class Drawable(Protocol):
    """A player that can be drawn from and scored, as `nlhf_zoo.policies.loading` loads one."""

    def sample(self, prompts: Prompts, num: int, rng: torch.Generator, /) -> Responses:
        """Draw independent responses."""
        ...

    def log_prob(self, prompts: Prompts, responses: Responses, /) -> Tensor:
        """Log-probability of each response [B, K]."""
        ...


@dataclass(frozen=True)  # no slots: jsonargparse reads the defaults by vars()
class SamplePlan:
    """How many responses are drawn, and how they are judged.

    Args:
        beta: temperature of the game, above 0.
        num_responses: N, half of them the reference's, half the policy's.
        num_opponents: M that a response meets.
        form: `pairs` gives each response opponents of its own, N M questions; `embeddings` gives
            all the same, for an oracle that reads N + M texts.
        payoff_bound: largest distance of the oracle's answers from 1/2.

    Raises:
        UserError: there are too few of them.
    """

    beta: float
    num_responses: int
    num_opponents: int
    form: Form = "pairs"
    payoff_bound: float = 0.5

    @property
    def range(self) -> float:
        """Of payoffs. The game is that of payoffs / range at beta / range, which lie in [0, 1]."""
        return 2 * self.payoff_bound

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise UserError(
                f"beta must be a finite number above 0 for a certificate, not {self.beta}"
            )
        if self.num_responses < 4:
            raise UserError(
                f"responses is {self.num_responses}: a certificate needs at least 4, two of the "
                "reference's and two of the policy's"
            )
        if self.num_opponents < (least := least_opponents(self.beta / self.range)):
            raise UserError(
                f"opponents is {self.num_opponents}: at beta = {self.beta:g} exp(r / beta) takes "
                f"at least {least} for each response"
            )


@dataclass(frozen=True, slots=True)
class SampledPrompts:
    """What samples say of B prompts.

    Args:
        estimates: of their exploitability.
        asked: answers that were asked for.
        invalid: those that could not be had.
    """

    estimates: ExploitabilityEstimates
    asked: int
    invalid: int


@dataclass(frozen=True, slots=True)
class DrawnResponses:
    """What an estimate is made from, before anybody has judged it.

    Args:
        scored: N responses, the reference's first.
        opponents: that they meet, drawn from the policy.
        log_ratio: log pi(y) - log mu(y) of the scored [B, N].
        from_reference: how many of them are the reference's.
    """

    scored: Responses
    opponents: Responses
    log_ratio: Tensor
    from_reference: int


def embeds(oracle: PreferenceOracle) -> bool:
    """Whether an answer costs an oracle nothing once it has read both texts."""
    return isinstance(oracle, ResponseTextModelOracle | TableOracle)


@torch.no_grad()
def sample_exploitability(
    player: Drawable,
    reference: Drawable,
    oracle: PreferenceOracle | None,
    prompts: Prompts,
    plan: SamplePlan,
    rng: torch.Generator,
) -> SampledPrompts | None:
    """Draw, score, ask and estimate.

    Args:
        player: whose exploitability it is.
        reference: of the game; it can score what the player draws.
        oracle: who judges; None asks nothing, of prompts that stand in for others where all
            processes of a run draw together.
        prompts: B prompts, encoded.
        plan: how many.
        rng: random stream.

    Returns:
        what was found; None where nothing was asked.

    Raises:
        UserError: the oracle has no embeddings, and these are asked for.
        OracleStoppedError: the oracle cannot be asked any more.
    """
    _refuse_no_embeddings(oracle, plan)
    drawn = draw_responses(player, reference, prompts, plan, rng)
    return None if oracle is None else judged_exploitability(drawn, oracle, prompts, plan)


@torch.no_grad()
def draw_responses(
    player: Drawable, reference: Drawable, prompts: Prompts, plan: SamplePlan, rng: torch.Generator
) -> DrawnResponses:
    """Draw and score what an estimate is made from, by whatever oracle; see there."""
    half = plan.num_responses // 2
    # Each player's in one go: opponents are drawn like the policy's own responses.
    others = plan.num_responses - half
    opponents = plan.num_opponents * (1 if plan.form == "embeddings" else plan.num_responses)
    theirs = _drawn(partial(reference.sample, prompts), half, rng)
    ours = _drawn(partial(player.sample, prompts), others + opponents, rng)
    scored = _together([theirs, _some(ours, 0, others)])
    met = _some(ours, others, others + opponents)
    ratio = _scored(player, prompts, scored) - _scored(reference, prompts, scored)
    return DrawnResponses(scored, met, ratio, half)


@torch.no_grad()
def judged_exploitability(
    drawn: DrawnResponses, oracle: PreferenceOracle, prompts: Prompts, plan: SamplePlan
) -> SampledPrompts:
    """Ask an oracle about what was drawn, and estimate; see `sample_exploitability`."""
    _refuse_no_embeddings(oracle, plan)
    shared = plan.form == "embeddings"
    answers = (_shared if shared else _own)(oracle, prompts, drawn.scored, drawn.opponents)
    preference = answers.preference
    if plan.range != 1:
        preference = 0.5 + (preference.double() - 0.5) / plan.range
    found = sampled_exploitability(
        drawn.log_ratio,
        drawn.from_reference,
        preference,
        plan.beta / plan.range,
        answers.valid,
        shared,
    )
    estimates = found.times(plan.range)
    return SampledPrompts(estimates, answers.valid.numel(), int((~answers.valid).sum()))


def _refuse_no_embeddings(oracle: PreferenceOracle | None, plan: SamplePlan) -> None:
    if plan.form == "embeddings" and oracle is not None and not embeds(oracle):
        raise UserError(
            f"{type(oracle).__name__} answers pairs, and has no embeddings: set form to pairs"
        )


def _shared(
    oracle: PreferenceOracle, prompts: Prompts, first: Responses, second: Responses
) -> Comparison:
    if isinstance(oracle, ResponseTextModelOracle):
        return oracle.compare_all(prompts, first, second)
    found: Comparison = oracle(prompts, first, second)
    return found


def _own(
    oracle: PreferenceOracle, prompts: Prompts, first: Responses, second: Responses
) -> Comparison:
    """Response n meets opponents n M to (n + 1) M [B, N, M]: each as a prompt of its own."""
    num, each = first.num, second.num // first.num
    rows = torch.arange(len(prompts)).repeat_interleave(num)
    ours, theirs = _regrouped(first, 1), _regrouped(second, each)
    found: Comparison = oracle(prompts.take(rows.tolist()), ours, theirs)
    shape = len(prompts), num, each
    return Comparison(found.preference.view(shape), found.valid.view(shape))


def _regrouped(responses: Responses, each: int) -> Responses:
    """Responses [B, K] as those of B K / ``each`` prompts."""
    rows = responses.weight.numel() // each

    def of(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.reshape(rows, each, *tensor.shape[2:])

    tokens, mask = of(responses.tokens), of(responses.mask)
    assert tokens is not None
    assert mask is not None
    texts = None
    if responses.text is not None:
        flat = [text for row in responses.text for text in row]
        texts = [flat[start : start + each] for start in range(0, len(flat), each)]
    return replace(
        responses,
        tokens=tokens,
        mask=mask,
        weight=torch.full_like(tokens[..., 0], 1, dtype=responses.weight.dtype) / each,
        text=texts,
        truncated=of(responses.truncated),
        log_prob=of(responses.log_prob),
    )


def _drawn(
    sample: Callable[[int, torch.Generator], Responses], num: int, rng: torch.Generator
) -> Responses:
    """``num`` responses a prompt, a limited number at a time."""
    sizes = [min(_ROWS, num - start) for start in range(0, num, _ROWS)]
    return _together([sample(size, rng) for size in sizes])


def _scored(player: Drawable, prompts: Prompts, responses: Responses) -> Tensor:
    parts = [
        player.log_prob(prompts, _some(responses, start, start + _ROWS))
        for start in range(0, responses.num, _ROWS)
    ]
    return torch.cat(parts, 1).double()


def _together(parts: Sequence[Responses]) -> Responses:
    """Responses to the same prompts as one record, of equal weight; the shorter are padded."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.tokens.shape[2] for part in parts)

    def padded(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, longest - tensor.shape[2]))

    tokens = torch.cat([padded(part.tokens) for part in parts], 1)
    cut = [part.truncated for part in parts]
    texts = [part.text for part in parts]
    joined = None
    if None not in texts:
        columns = zip(*(text for text in texts if text is not None), strict=True)
        joined = [[text for row in rows for text in row] for rows in columns]
    return Responses(
        tokens,
        torch.cat([padded(part.mask) for part in parts], 1),
        torch.full_like(tokens[..., 0], 1, dtype=parts[0].weight.dtype) / tokens.shape[1],
        text=joined,
        version=parts[0].version,
        truncated=None if None in cut else torch.cat([one for one in cut if one is not None], 1),
    )


def _some(responses: Responses, start: int, end: int) -> Responses:
    """Responses ``start`` to ``end`` to each prompt."""

    def of(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[:, start:end]

    weight = responses.weight[:, start:end]
    return replace(
        responses,
        tokens=responses.tokens[:, start:end],
        mask=responses.mask[:, start:end],
        weight=torch.full_like(weight, 1 / max(weight.shape[1], 1)),
        text=None if responses.text is None else [row[start:end] for row in responses.text],
        truncated=of(responses.truncated),
        log_prob=of(responses.log_prob),
    )
