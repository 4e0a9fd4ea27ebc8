"""What a judge's reply says: a probability, or that it is no verdict."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nlhf_zoo.errors import UserError

VerdictFrom = Literal["json", "logprobs"]
# P(A > B) that a word stands for.
BETTER: Mapping[str, float] = {"A": 1.0, "B": 0.0, "tie": 0.5}
# What many models put round their JSON.
_FENCE = re.compile(r"\s*```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)
# How much a label that the server did not list may change a probability.
UNLISTED = 0.01


@dataclass(frozen=True, slots=True)
class Completion:
    """A chat completion, as far as a verdict needs it."""

    text: str  # what the judge wrote; empty where it wrote nothing
    is_whole: bool  # it ended by itself, neither at the limit of tokens nor by a filter
    tokens: Sequence[Any] | None = None  # with log-probabilities, where the server gives these
    prompt_tokens: int = 0  # tokens that were read, 0 where the server does not say
    reply_tokens: int = 0  # tokens that were written, likewise


def read_completion(body: bytes) -> Completion | None:
    """The body of a reply, as the server sent it; None where it lacks a choice with a message.

    Then it was cut, or it is something else than a chat completion.
    """
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        message = choice["message"]
        text = message.get("content")
    # RecursionError: of brackets that are nested a thousandfold
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    usage, logprobs = reply.get("usage"), choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return Completion(
        text if isinstance(text, str) else "",
        choice.get("finish_reason") not in ("length", "content_filter"),
        tokens if isinstance(tokens, list) else None,
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
    )


def _count(usage: object, name: str) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and count > 0 else 0


def json_verdict(completion: Completion) -> float:
    """P(A > B) from a reply that is one JSON object; NaN where it is none.

    The object has either ``better``, which is "A", "B" or "tie", or ``probability``, a number in
    [0, 1]. It may have other keys, for reasons, say; a key that occurs twice is no verdict. One
    fence of Markdown round the whole reply is taken off.

    Examples:
        >>> json_verdict(Completion('{"better": "B"}', True))
        0.0
        >>> json_verdict(Completion('A is better: {"better": "A"}', True))
        nan
    """
    if not completion.is_whole:
        return math.nan
    try:
        fence = _FENCE.fullmatch(completion.text)
        text = completion.text if fence is None else fence[1]
        verdict = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return math.nan
    if not isinstance(verdict, dict) or len(verdict.keys() & {"better", "probability"}) != 1:
        return math.nan
    if "better" in verdict:
        better = verdict["better"]
        return BETTER.get(better, math.nan) if isinstance(better, str) else math.nan
    probability = verdict["probability"]
    if type(probability) not in (int, float) or not 0 <= probability <= 1:
        return math.nan
    return float(probability)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def logprobs_verdict(completion: Completion) -> float:
    """P(A > B) from the log-probabilities of a reply that is the letter A or B; else NaN.

    It is p(A) / (p(A) + p(B)) at the token that is the letter, tokens with white space round the
    letter included. A letter that is not among the tokens that the server lists is at most as
    probable as the least of these; where that leaves more than 0.01 open there is no verdict.

    Raises:
        UserError: the server gives no log-probabilities.
    """
    label = completion.text.strip()
    if not completion.is_whole or label not in ("A", "B"):
        return math.nan
    if not completion.tokens:
        raise UserError(
            "the judge's server gives no log-probabilities: set verdict to json, or take a server "
            "that has `logprobs` and `top_logprobs`"
        )
    try:
        mass, least = _masses(completion.tokens, label)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return math.nan
    total = mass["A"] + mass["B"]
    if not 0 < total <= 1.001:  # rounding of a server's own
        return math.nan
    if 0 in mass.values() and least / (total + least) > UNLISTED:
        return math.nan
    return mass["A"] / total


def _masses(tokens: Sequence[Any], label: str) -> tuple[dict[str, float], float]:
    """Probabilities of A and B at the first token that is the label, and of the least listed."""
    top = next(token["top_logprobs"] for token in tokens if token["token"].strip() == label)
    mass, least = {"A": 0.0, "B": 0.0}, 1.0
    # Different tokens may have one text; the very same one may be listed twice.
    listed = {(one["token"], one["logprob"], str(one.get("bytes"))) for one in top}
    for name, log_prob, _ in listed:
        probability = math.exp(log_prob)
        least = min(least, probability)
        if (letter := name.strip()) in mass:
            mass[letter] += probability
    return mass, least


READERS: Mapping[VerdictFrom, Callable[[Completion], float]] = {
    "json": json_verdict,
    "logprobs": logprobs_verdict,
}
