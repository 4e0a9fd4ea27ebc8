"""Log-probabilities are those of the response, and of what is drawn; and what drawing costs."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.check import Check, Note, at_most, skipped
from nlhf_zoo.health.probe import Probe, gap, inner_tokens, one_by_one, total_log_prob
from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.language_model.capabilities import rounding
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.records import GREEDY, PLAIN, Decoding, Mixture, Prompts, Responses
from nlhf_zoo.records.random_streams import random_stream

_POLICY = {"policy": 1.0}
_COLUMNS = 3  # of further padding
NEARLY_ALL = 0.95  # of the responses
CUT = (
    "raise model.policy.max_new_tokens; of a model that thinks before it answers, set "
    "model.policy.chat_template_kwargs, as to {enable_thinking: false}"
)
_ENOUGH = 16  # responses, to tell whether nearly all are cut
_MASK = "the mask of a response must hold its end-of-sequence token once, and no padding"


@torch.no_grad()
def padding_and_batch(game: OnlineGame, probe: Probe) -> Check:
    """A response has one log-probability: in a batch, alone, and with more padding on each side."""
    policy, prompts, responses = game.policy, probe.prompts, probe.responses
    together = total_log_prob(policy, _POLICY, prompts, responses)
    alone = torch.zeros_like(together)
    for place, prompt, response in one_by_one(probe):
        alone[place] = total_log_prob(policy, _POLICY, prompt, response)
    worst = gap(together, alone, responses)
    if prompts.tokens is not None:
        worst = max(worst, gap(_padded(policy, prompts, responses), alone, responses))
    return at_most(
        "padding and batch do not matter",
        worst,
        rounding(policy),
        "give the model position ids that do not count padding, and its attention mask",
        " a token",
    )


def _padded(policy: Policy, prompts: Prompts, responses: Responses) -> Tensor:
    """With columns of padding to the left of the prompts and to the right of the responses."""
    assert prompts.tokens is not None
    assert prompts.mask is not None
    token = int(prompts.tokens[0, -1])  # any: what is masked must not matter
    wide = replace(
        prompts,
        tokens=pad(prompts.tokens, (_COLUMNS, 0), value=token),
        mask=pad(prompts.mask.bool(), (_COLUMNS, 0), value=False),
    )
    long = replace(
        responses,
        tokens=pad(responses.tokens, (0, _COLUMNS), value=token),
        mask=pad(responses.mask, (0, _COLUMNS), value=False),
    )
    try:
        return total_log_prob(policy, _POLICY, wide, long)
    except UserError:  # no room for more columns in the model's context
        return total_log_prob(policy, _POLICY, prompts, responses)


def dropout_off(game: OnlineGame, probe: Probe) -> Check:
    """Two passes of the trained log-probability are equal, and two draws from one stream."""
    name, policy = "dropout is off", game.policy
    if getattr(policy, "dropout", False):
        return skipped(name, "model.policy.dropout asks for it")
    mode = policy.training
    policy.train()
    try:
        with torch.enable_grad():
            first, second = (probe.log_prob(policy, _POLICY).detach() for _ in range(2))
    finally:
        policy.train(mode)
    return at_most(
        name,
        gap(first, second),
        0.0,
        "something draws random numbers in the model: put it in evaluation mode",
    )


@torch.no_grad()
def end_scored_once(game: OnlineGame, probe: Probe) -> Check:
    """The end-of-sequence token counts once where it was generated, and never where it was not.

    log pi(y, end | x) = log pi(y | x) + log pi(end | x, y), and neither padding that is the end
    itself nor an end that is masked adds to it.
    """
    name, policy, prompts = "the end of a sequence is scored once", game.policy, probe.prompts
    if not isinstance(policy, CausalLMPolicy):
        return skipped(name, "the policy is no language model")
    if not policy.ends:
        return skipped(name, "no token ends a response of this model")
    assert prompts.tokens is not None
    assert prompts.mask is not None
    body = inner_tokens(policy, (len(prompts), 1, 2)).to(prompts.tokens)
    end = torch.full_like(body[..., :1], policy.ends[0])
    after = replace(
        prompts,
        tokens=torch.cat([prompts.tokens, body[:, 0]], 1),
        mask=torch.cat([prompts.mask.bool(), torch.ones_like(body[:, 0]).bool()], 1),
    )
    ended = torch.cat([body, end], -1)
    try:
        whole, without, alone = (
            _masked(policy, prompts, ended, 3),
            _masked(policy, prompts, body, 2),
            _masked(policy, after, end, 1),
        )
        padded = _masked(policy, prompts, torch.cat([ended, end], -1), 3)
        masked = _masked(policy, prompts, ended, 2)
    except UserError:
        return skipped(name, "there is no room for it in the model's context")
    if bool((alone >= 0).any()):
        return Check(name, False, "the end has log-probability 0", "below 0", _MASK)
    worst = max(gap(whole, without + alone), gap(padded, whole), gap(masked, without))
    return at_most(name, worst / 3, rounding(policy), _MASK, " a token")


def _masked(policy: Policy, prompts: Prompts, tokens: Tensor, kept: int) -> Tensor:
    """Log-probability [B, 1] of the first tokens of responses."""
    mask = (torch.arange(tokens.shape[-1], device=tokens.device) < kept).expand(tokens.shape)
    weight = torch.ones(tokens.shape[:2], device=tokens.device)
    return total_log_prob(policy, _POLICY, prompts, Responses(tokens, mask, weight))


def responses_end(game: OnlineGame, probe: Probe) -> Check:
    """Drawn responses hold their end once, as their last token, or are marked as truncated."""
    name, policy, responses = "responses stop at their end", game.policy, probe.responses
    if not isinstance(policy, CausalLMPolicy):
        return skipped(name, "the policy is no language model")
    mask = responses.mask
    ends = torch.isin(responses.tokens, torch.tensor(policy.ends).to(responses.tokens)) & mask
    last = mask & ~pad(mask, (0, 1), value=False)[..., 1:]
    has_end = (ends & last).any(-1)
    truncated = torch.zeros_like(has_end) if policy.ends else ~has_end
    if responses.truncated is not None:
        truncated = responses.truncated
    wrong = (
        (mask[..., 1:] & ~mask[..., :-1]).any(-1)  # a hole in the mask
        | (ends & ~last).any(-1)
        | (has_end == truncated)
        | (truncated & ~mask.all(-1))
    )
    return at_most(
        name,
        int(wrong.sum()),
        0.0,
        "the mask of a response ends with its first end-of-sequence token, and one without is "
        "truncated",
        f" of {wrong.numel()} wrong, {int(has_end.sum())} have an end",
    )


def _drawn_from(game: OnlineGame) -> list[tuple[Mixture, Decoding]]:
    """All that a round draws from, each once."""
    drawn: list[tuple[Mixture, Decoding]] = [({"policy": 1.0}, PLAIN)]
    for step in game.plan:
        drawn.append((dict(step.sampler), step.scored))
        drawn += [(dict(step.sampler), GREEDY)] if step.greedy else []
        drawn += [(dict(opponent), step.opponent) for _, opponent in step.payoff]
        drawn += [] if step.explored is None else [(dict(step.explored), PLAIN)]
    return [one for number, one in enumerate(drawn) if one not in drawn[:number]]


@torch.no_grad()
def generator_agrees(game: OnlineGame, prompts: Prompts) -> Check:
    """The generator's own log-probabilities are those that are computed again.

    Of all mixtures that a round draws from: with a cache that is not theirs they would not be.
    """
    name, policy, worst = "the generator draws what is scored", game.policy, 0.0
    prompts = policy.encode(prompts)
    for who, decoding in _drawn_from(game):
        rng = random_stream(0, 0, 0, prompts.ids.device, "generator")
        responses = policy.sample(who, prompts, 2, decoding, rng)
        if responses.log_prob is None:
            return skipped(name, "the policy's generator says nothing of log-probabilities")
        again = policy.log_prob(who, prompts, responses)
        normalised = getattr(policy, "length_normalised", False)
        worst = max(worst, gap(responses.log_prob, again, None if normalised else responses))
    return at_most(
        name,
        worst,
        rounding(policy),
        "the generator samples from another distribution than the one that is trained: look at "
        "its cache, its positions and its weights",
        " a token",
    )


def read_back(game: OnlineGame, probe: Probe) -> Note | None:
    """How many responses are other tokens after they were decoded and encoded again."""
    policy, responses = game.policy, probe.responses
    if not isinstance(policy, CausalLMPolicy) or responses.text is None:
        return None
    changed = total = 0
    for tokens, mask, texts in zip(responses.tokens, responses.mask, responses.text, strict=True):
        for row, keep, text in zip(tokens, mask, texts, strict=True):
            drawn = [t for t in row[keep].tolist() if t not in policy.ends]
            again = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
            changed += drawn != list(again)
            total += 1
    return Note(
        "tokens that change in a round trip by text",
        f"in {changed} of {total} responses (they are scored as they were drawn)",
    )


def speed(game: OnlineGame, prompts: Prompts) -> list[Check | Note]:
    """Tokens a second, mean length and the share that was truncated."""
    policy = game.policy
    if not isinstance(policy, CausalLMPolicy):
        return []
    prompts = policy.encode(prompts)
    num = max(game.rollout.num_responses, math.ceil(_ENOUGH / len(prompts)))
    for _ in range(2):  # the first call warms up
        rng = random_stream(0, 0, 1, prompts.ids.device, "generator")
        began = _now()
        responses = policy.sample({"policy": 1.0}, prompts, num, PLAIN, rng)
        seconds = _now() - began
    tokens, count = int(responses.mask.sum()), responses.weight.numel()
    pace = f"{tokens / seconds:,.0f} tokens a second, {len(prompts)} x {num} responses"
    found: list[Check | Note] = [
        Note("generation", pace),
        Note("mean length of a response", f"{tokens / count:.1f} tokens"),
    ]
    if responses.truncated is not None:
        share = int(responses.truncated.sum()) / count
        figure = f"{share:.0%} of {count} are cut at max_new_tokens = {policy.max_new_tokens}"
        limit = f"below {NEARLY_ALL:.0%}"
        found.append(Check("responses end by themselves", share < NEARLY_ALL, figure, limit, CUT))
    return found


def size(game: OnlineGame) -> Note:
    """Parameters that are trained, and the memory of the players."""
    kept, parameters = game.policy.checkpoint_keys(), dict(game.policy.named_parameters())
    numbers = [p.numel() for p in parameters.values()]
    trained = [p.numel() for p in parameters.values() if p.requires_grad]
    memory = sum(p.nbytes for p in parameters.values()) / 2**20
    players = sum(p.nbytes for name, p in parameters.items() if name in kept) / 2**20
    return Note(
        "trained parameters",
        f"{sum(trained):,} of {sum(numbers):,}; all players but the reference take "
        f"{players:,.1f} of {memory:,.1f} MiB",
    )


def _now() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
