"""The forms in which a judge is asked: where, with what, and how its reply is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from nlhf_zoo.oracles.judge.reply import Completion, read_completion, read_decision
from nlhf_zoo.oracles.judge.verdict import Verdict, json_verdict, logprobs_verdict, options_verdict

VerdictFrom = Literal["json", "logprobs", "options"]


class Form(NamedTuple):
    """How a question is put to a server, and its reply read."""

    path: str  # of the endpoint, behind the server's address
    ask: Callable[[str, str | None], Mapping[str, Any]]  # fields of a request: message, and system
    read: Callable[[bytes], Completion | None]  # the body of a reply
    verdict: Callable[[Completion], Verdict]


def _chat(message: str, system: str | None) -> dict[str, Any]:
    messages = [{"role": "user", "content": message}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages}


def _decision(message: str, _: str | None) -> dict[str, Any]:
    """A choice between A and B; the server gives options letters by their places, the same ones."""
    options = {letter: f"Response {letter} is the better answer." for letter in ("A", "B")}
    return {"state": message, "questions": {"better": {"type": "choice", "criteria": options}}}


_CHAT = "/chat/completions"
FORMS: Mapping[VerdictFrom, Form] = {
    "json": Form(_CHAT, _chat, read_completion, json_verdict),
    "logprobs": Form(_CHAT, _chat, read_completion, logprobs_verdict),
    "options": Form("/systemone", _decision, read_decision, options_verdict),
}
