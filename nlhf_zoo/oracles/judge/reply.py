"""What a judge's server has sent: a completion, or that it is none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# How servers say that a reply has ended by itself; None where they do not say. Everything else is
# the end of something that was broken off: length, content_filter, abort, error, tool_calls, ...
_WHOLE = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete", ""})
_THOUGHTS = ("thinking", "reasoning")  # types of a part that is no part of the answer
_MOST_TOKENS = 2**40  # that a reply is believed to have cost


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion, as far as a verdict needs it."""

    text: str  # what the judge wrote; empty where it wrote nothing
    finish_reason: str = "stop"  # why it ended, in the server's word; empty where it does not say
    tokens: Sequence[Any] | None = None  # with log-probabilities, where the server gives these
    prompt_tokens: int = 0  # tokens that were read, 0 where the server does not say
    reply_tokens: int = 0  # tokens that were written, likewise

    @property
    def is_whole(self) -> bool:
        """Whether it ended by itself: not at the limit of tokens, by a filter or by a failure."""
        return self.finish_reason.lower() in _WHOLE


def read_completion(body: bytes) -> Completion | None:
    """The body of a reply, as the server sent it; None where it lacks a choice with a message.

    Then it was cut, or it is something else than a chat completion. A message in parts is the text
    of its parts, without reasoning before it; with a part of another kind it is no answer, and
    neither is a refusal in a field of its own.
    """
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
    # RecursionError: of brackets that are nested a thousandfold
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    finish_reason, logprobs = choice.get("finish_reason"), choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    text = _joined(content) if isinstance(content, list) else content
    if not text and isinstance(refusal, str) and refusal:
        text, finish_reason = refusal, "refusal"
    if finish_reason is not None and not isinstance(finish_reason, str):
        finish_reason = "no word"
    usage = reply.get("usage")
    return Completion(
        text if isinstance(text, str) else "",
        finish_reason or "",
        tokens if isinstance(tokens, list) else None,
        token_count(usage, "prompt_tokens"),
        token_count(usage, "completion_tokens"),
    )


def read_decision(body: bytes) -> Completion | None:
    """The reply of an endpoint that decides between A and B; None where it lacks probabilities.

    These are its text, as JSON.
    """
    try:
        reply = json.loads(body)
        text = json.dumps(reply["answers"]["better"]["probabilities"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return Completion(text, prompt_tokens=token_count(reply.get("usage"), "input_tokens"))


def _joined(parts: Sequence[Any]) -> str:
    """The text of a message in parts; empty where it is not text alone, after some reasoning."""
    texts: list[str] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _THOUGHTS and not texts:
            continue
        if kind != "text" or not isinstance(part.get("text"), str):
            return ""
        texts.append(part["text"])
    return "".join(texts)


def read_models(body: bytes) -> list[str] | None:
    """The names in a server's list of models; None where it is none."""
    try:
        names = [model["id"] for model in json.loads(body)["data"]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return names if all(isinstance(name, str) for name in names) else None


def token_count(usage: object, name: str) -> int:
    """What a server says of the tokens of a reply; 0 where it says nothing that can be true."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 < count < _MOST_TOKENS else 0
