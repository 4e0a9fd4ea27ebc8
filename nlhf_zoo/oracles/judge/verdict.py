"""What a judge's completion says: a probability, or why it is no verdict."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nlhf_zoo.oracles.judge.reply import Completion

# P(A > B) that a word stands for; that of a tie in letters of any case.
BETTER: Mapping[str, float] = {"A": 1.0, "B": 0.0, "tie": 0.5}
NO_LOG_PROBS = "the server gives no log-probabilities"
# How much a label that the server did not list may change a probability.
UNLISTED = 0.01
_ROUNDING = 1e-3  # of a server's own
# What begins the reasoning of today's models, and what ends it. Templates of some of them open it
# in the prompt, so that a reply has the end only.
_REASONING = re.compile(r"<(think|thinking|thought|reasoning)>|\[THINK\]")
_FENCE = re.compile("`{3,}|~{3,}")
# How vocabularies spell white space.
_BLANKS = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": "\n"})
# The end of a sequence, which some servers list among the tokens of a reply and others do not.
_END = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")


class Verdict(NamedTuple):
    """How a completion was read."""

    probability: float  # P(A > B); NaN where it says none
    why: str = ""  # it is no verdict


class _NoVerdictError(ValueError):
    """A completion that is none; its message says why."""


def json_verdict(completion: Completion) -> Verdict:
    """P(A > B) from a reply that is one JSON object; NaN where it is none.

    The object has either ``better``, which is "A", "B" or "tie", or ``probability``, a number in
    [0, 1]. It may have other keys, for reasons, say; a key that occurs twice is no verdict. One
    block of reasoning before it, and one fence of Markdown round it, are taken off.

    Examples:
        >>> json_verdict(Completion('{"better": "B"}')).probability
        0.0
        >>> json_verdict(Completion('A is better: {"better": "A"}'))
        Verdict(probability=nan, why='it is not one JSON object')
    """
    return _read(completion, lambda text: _of_object(_parsed(_unfenced(text))))


def logprobs_verdict(completion: Completion) -> Verdict:
    """P(A > B) from the log-probabilities of a reply that is the letter A or B; else NaN.

    It is p(A) / (p(A) + p(B)) at the token in which the answer stands, the last one; tokens with
    white space round the letter count as well. A server may list more tokens than its answer shows,
    of hidden reasoning, but they must end with the answer, and a mark for the end of the sequence.
    A letter that is not among the alternatives that the server lists is at most as probable as the
    least of these, and as what they leave of 1; where that leaves more than 0.01 open there is no
    verdict.
    """
    return _read(completion, lambda text: _of_letter(text.strip(), completion.tokens or ()))


def options_verdict(completion: Completion) -> Verdict:
    """P(A > B) from the probabilities of two options, A and B, of an endpoint that decides; or NaN.

    Example:
        >>> options_verdict(Completion('{"A": 0.75, "B": 0.25}')).probability
        0.75
    """
    return _read(completion, lambda text: _of_options(_parsed(text)))


def _read(completion: Completion, read: Callable[[str], float]) -> Verdict:
    try:
        if not completion.is_whole:
            raise _NoVerdictError(_broken_off(completion.finish_reason))
        return Verdict(read(_without_reasoning(completion.text)))
    except _NoVerdictError as error:
        return Verdict(math.nan, str(error))


def _broken_off(finish_reason: str) -> str:
    if finish_reason == "length":
        return "it was cut at the limit of tokens: raise max_tokens"
    return f"it did not end by itself, but with {finish_reason}"


def _without_reasoning(text: str) -> str:
    """The answer of a reply that may begin with one block of reasoning."""
    text = text.removeprefix("\ufeff").strip()
    if opening := _REASONING.match(text):
        closing = f"</{opening[1]}>" if opening[1] else "[/THINK]"
    elif text.startswith(("{", "`", "~")):
        return text
    else:
        closing = "</think>"
    before, found, after = text.partition(closing)
    if not found and opening:
        raise _NoVerdictError("its reasoning does not end")
    return after if found else before


# ---- JSON ----------------------------------------------------------------------------------------


def _unfenced(text: str) -> str:
    """What stands in the one fence of Markdown round a text, if there is one."""
    text = text.strip()
    fence = _FENCE.match(text)
    if fence is None or len(text) < 2 * fence.end() or not text.endswith(fence[0]):
        return text
    inside = text[fence.end() : -fence.end()].lstrip()
    return inside[4:] if inside[:4].lower() == "json" else inside


def _parsed(text: str) -> dict[str, Any]:
    try:
        verdict = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except _NoVerdictError:
        raise
    except (ValueError, RecursionError):
        verdict = None
    if not isinstance(verdict, dict):
        raise _NoVerdictError("it is not one JSON object")
    return verdict


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _NoVerdictError("a key of its object occurs twice")
    return found


def _no_constant(name: str) -> float:
    raise _NoVerdictError(f"{name} is not JSON")


def _of_object(verdict: Mapping[str, Any]) -> float:
    if len(verdict.keys() & {"better", "probability"}) != 1:
        raise _NoVerdictError("its object needs one of the keys better and probability")
    if "probability" in verdict:
        return _probability(verdict["probability"])
    better = verdict["better"]
    if isinstance(better, str) and better.lower() == "tie":
        return BETTER["tie"]
    if not isinstance(better, str) or better not in BETTER:
        raise _NoVerdictError("better is none of A, B and tie")
    return BETTER[better]


def _of_options(verdict: Mapping[str, Any]) -> float:
    if verdict.keys() != {"A", "B"}:
        raise _NoVerdictError("it has other options than A and B")
    one, other = (_probability(verdict[letter]) for letter in ("A", "B"))
    if abs(one + other - 1) > _ROUNDING:
        raise _NoVerdictError("the probabilities of A and B do not add up to 1")
    return one / (one + other)


def _probability(value: object) -> float:
    """A number in [0, 1] of a reply's."""
    if not (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1):
        raise _NoVerdictError("its probability is no number from 0 to 1")
    return float(value)


# ---- log-probabilities ---------------------------------------------------------------------------


def _of_letter(label: str, tokens: Sequence[Any]) -> float:
    if label not in ("A", "B"):
        raise _NoVerdictError("it is not the letter A or B")
    if not tokens:
        raise _NoVerdictError(NO_LOG_PROBS)
    try:
        mass, most = _masses(_token_of(label, tokens)["top_logprobs"])
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise _NoVerdictError("its log-probabilities cannot be read") from None
    total = mass["A"] + mass["B"]
    if not 0 < total <= 1 + _ROUNDING:
        raise _NoVerdictError("its log-probabilities of A and B are none")
    if 0 in mass.values() and most / (total + most) > UNLISTED:
        raise _NoVerdictError("the other letter is not listed, and may count: raise top_logprobs")
    return mass["A"] / total


def _token_of(label: str, tokens: Sequence[Any]) -> Any:
    """The token in which the letter stands: the last but white space and the sequence's end."""
    ended = False
    for token in reversed(tokens):
        written = _spelled(token)
        if written == label:
            return token
        if written and (ended or not _END.fullmatch(written)):
            break
        ended = ended or bool(written)
    raise _NoVerdictError("its log-probabilities do not end with its answer")


def _spelled(token: Any) -> str:
    """A token's text without white space round it, however the server spells that."""
    text: str = token["token"].translate(_BLANKS).strip()
    return text


def listed_tokens(tokens: Sequence[Any]) -> list[str]:
    """Tokens of a reply with their alternatives, for a reader; empty where they are unreadable."""
    try:
        return [
            f"{token['token']!r}: "
            + ", ".join(f"{one['token']!r} {one['logprob']:.3f}" for one in token["top_logprobs"])
            for token in tokens
        ]
    except (LookupError, TypeError, ValueError):
        return []


def _masses(top: Sequence[Any]) -> tuple[dict[str, float], float]:
    """Probabilities of A and B among the listed tokens, and the most of one that is not listed."""
    mass, least, left = {"A": 0.0, "B": 0.0}, 1.0, 1.0
    # Different tokens may have one text; the very same one may be listed twice.
    listed = {(one["token"], one["logprob"], str(one.get("bytes"))): one for one in top}
    for one in listed.values():
        probability = math.exp(one["logprob"])
        least = min(least, probability)
        left -= probability
        if (letter := _spelled(one)) in mass:
            mass[letter] += probability
    return mass, max(0.0, min(least, left))
