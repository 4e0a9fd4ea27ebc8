"""``nlhf oracle --probe``: one question to a judge, what came back, and how it was read."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from nlhf_zoo.data.texts.conversations import message
from nlhf_zoo.errors import UserError
from nlhf_zoo.health.oracles.asking import ResponseSample
from nlhf_zoo.health.oracles.judges import models_listed
from nlhf_zoo.oracles import JudgeOracle, PreferenceOracle
from nlhf_zoo.oracles.judge.client import Failure
from nlhf_zoo.oracles.judge.reply import Completion
from nlhf_zoo.oracles.judge.verdict import listed_tokens
from nlhf_zoo.oracles.text_oracle import Question

_QUESTION = Question([message("user", "Name an even number.")], "Four.", "Seven.")
_SHOWN = 2000  # characters of a reply
_TOKENS = 3  # of a reply, the last ones


def probe(oracle: PreferenceOracle, samples: Sequence[ResponseSample] | None) -> None:
    """Ask each judge of an oracle one question, by one request, and print all of it.

    Raises:
        UserError: there is no judge, or one gives no verdict.
    """
    judges = [part for part in oracle.modules() if isinstance(part, JudgeOracle)]
    if not judges:
        raise UserError(f"--probe asks a judge, and {type(oracle).__name__} has none")
    question = samples[0].questions[0] if samples else _QUESTION
    failed = [sentence for judge in judges if (sentence := _probe(judge, question))]
    if failed:
        raise UserError(failed[0])


def _probe(judge: JudgeOracle, question: Question) -> str:
    """Print one judge's answer; what is wrong with it, empty where nothing is."""
    model, url = judge.request["model"], judge.client.endpoint.base_url
    options = ", ".join(f"{name} {value}" for name, value in judge.request.items())
    print(f"One question to the judge at {url}")
    _line("verdict", f"{judge.verdict}, by POST {judge.client.form.path}")
    _line("options", options)
    _line("server", models_listed(judge).figure)
    _line("prompt", question.prompt)
    _line("shown as A", question.first)
    _line("shown as B", question.second)
    began = time.perf_counter()
    outcome = judge.probe(question)
    seconds = time.perf_counter() - began
    if isinstance(outcome, Failure):
        _line("came back", f"{outcome.message}, after {seconds:.2f} s")
        return f"the judge at {url} gives no completion with the model {model}: {outcome.message}"
    for name, text in _reply(judge, outcome, seconds):
        _line(name, text)
    verdict = judge.read(outcome)
    if math.isnan(verdict.probability):
        why = judge.client.presentable(verdict.why)
        _line("read as", f"no verdict: {why}")
        return f"the judge at {url} gives no verdict: {why}"
    _line("read as", f"P(A > B) = {verdict.probability:.6g}")
    return ""


def _reply(judge: JudgeOracle, reply: Completion, seconds: float) -> Iterator[tuple[str, str]]:
    ended = f"ended with {reply.finish_reason}" if reply.finish_reason else "no word on its end"
    cost = f"{reply.prompt_tokens} tokens read, {reply.reply_tokens} written"
    shown = judge.client.presentable
    yield "came back", f"a completion after {seconds:.2f} s, {shown(ended)}; {cost}"
    yield "text", shown(reply.text, _SHOWN) or "nothing"
    for token in listed_tokens(reply.tokens or ())[-_TOKENS:]:
        yield "token", shown(token)


def _line(name: str, text: str) -> None:
    print(f"  {name:<10}  {text}")
