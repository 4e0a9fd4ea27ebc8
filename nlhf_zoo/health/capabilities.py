"""What was found of a language model when it was tried, as checks and notes."""

from __future__ import annotations

from nlhf_zoo.health.check import Check, Finding, Note, at_most, skipped
from nlhf_zoo.policies.language_model.capabilities import Capabilities
from nlhf_zoo.policies.language_model.generation import Generator
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.policies.language_model.targets import kinds

_PADDING = "a padded prompt is read as it is alone"
_GENERATOR = "short responses are drawn as they are scored"
_ELSEWHERE = "choose a model of another architecture"
_OF_ENGINE = (
    "the engine draws from another distribution than the one that is trained: give it the same "
    "base model in the same type, or raise model.policy.generator.max_gap"
)


def trial(policy: CausalLMPolicy) -> list[Check]:
    """Whether batches of prompts of different length are right, and draws are what is scored."""
    found = policy.capabilities
    kind = type(policy.language_model).__name__
    padding = at_most(
        _PADDING,
        found.padding_gap,
        found.rounding,
        f"{kind} reads padding, whatever its attention mask says: {_ELSEWHERE}",
        " a token",
    )
    return [padding, _drawing(found, kind, policy.generator)]


def _drawing(found: Capabilities, kind: str, generator: Generator) -> Check:
    if found.drawing_gap is None:
        return skipped(_GENERATOR, "responses are drawn by an engine that is not tried")
    if found.failure:
        advice = f"{kind} cannot generate here ({found.failure}): {_ELSEWHERE}"
        return Check(_GENERATOR, False, "could not be drawn", "", advice)
    advice = f"{kind} generates from another distribution than its forward pass has: {_ELSEWHERE}"
    if generator.is_tried:
        advice = _OF_ENGINE
    limit = found.rounding if generator.max_gap is None else generator.max_gap
    return at_most(_GENERATOR, found.drawing_gap, limit, advice, " a token")


def notes(policy: CausalLMPolicy) -> list[Finding]:
    """How the policy draws and scores, as it was found right, and what has no adapter."""
    found = policy.capabilities
    engine = type(policy.generator).__name__
    if found.fallback:
        engine = f"transformers, not by {engine}: {found.fallback}"
    calls = "one call" if found.drawing.one_call else "a call for each player"
    prompts = {
        "repeated": "once for all its responses",
        "reordered": "once for all its responses, by index",
        None: "for each response",
    }
    cache = "read " + prompts[found.drawing.shared_prompt]
    if not found.drawing.cached:
        cache = "read again for each token: this model's cache is not right here"
    chunk = f"{found.softmax_chunk} tokens at a time" if found.softmax_chunk else "whole"
    said: list[Finding] = [
        Note("responses are drawn by", engine),
        Note("mixtures of players are drawn in", calls),
        Note("a prompt is", cache),
        Note("logits over the vocabulary are held", chunk),
    ]
    if policy.left_out:
        figure = ", ".join(kinds(policy.left_out))
        said.append(Note("layers left without an adapter, for none has gradient", figure))
    return said
