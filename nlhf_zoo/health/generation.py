"""What is drawn is what is scored; and what drawing costs."""

from __future__ import annotations

import time

import torch

from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.check import Check, Note, at_most, skipped
from nlhf_zoo.health.probe import Probe, gap, rounding
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.random_streams import random_stream
from nlhf_zoo.records import PLAIN, Decoding, Mixture, Prompts


def _drawn_from(game: OnlineGame) -> list[tuple[Mixture, Decoding]]:
    """All that a round draws from, each once."""
    drawn: list[tuple[Mixture, Decoding]] = [({"policy": 1.0}, PLAIN)]
    for step in game.plan:
        drawn.append((dict(step.sampler), step.scored))
        drawn += [(dict(opponent), step.opponent) for _, opponent in step.payoff]
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


def speed(game: OnlineGame, prompts: Prompts) -> list[Note]:
    """Tokens a second, mean length and the share that was truncated."""
    policy = game.policy
    if not isinstance(policy, CausalLMPolicy):
        return []
    prompts, num = policy.encode(prompts), max(1, game.rollout.num_responses)
    for _ in range(2):  # the first call warms up
        rng = random_stream(0, 0, 1, prompts.ids.device, "generator")
        began = _now()
        responses = policy.sample({"policy": 1.0}, prompts, num, PLAIN, rng)
        seconds = _now() - began
    tokens, count = int(responses.mask.sum()), responses.weight.numel()
    pace = f"{tokens / seconds:,.0f} tokens a second, {len(prompts)} x {num} responses"
    found = [
        Note("generation", pace),
        Note("mean length of a response", f"{tokens / count:.1f} tokens"),
    ]
    if responses.truncated is not None:
        share = f"{int(responses.truncated.sum()) / count:.0%} of the responses"
        found.append(Note(f"cut at max_new_tokens = {policy.max_new_tokens}", share))
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
