"""A language model as the judge, behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.judge.client import Failure, JudgeClient
from nlhf_zoo.oracles.judge.endpoint import Endpoint, refuse_endpoint
from nlhf_zoo.oracles.judge.forms import FORMS, VerdictFrom
from nlhf_zoo.oracles.judge.prompt import FOLDER, read_template, render
from nlhf_zoo.oracles.judge.reply import Completion
from nlhf_zoo.oracles.judge.scheduler import RateLimits, RequestScheduler
from nlhf_zoo.oracles.judge.state import JudgeState
from nlhf_zoo.oracles.judge.verdict import NO_LOG_PROBS, Verdict
from nlhf_zoo.oracles.text_oracle import Answer, Order, Question, TextOracle, in_order, refuse_order

# Fields of a request that the oracle fills in itself.
_RESERVED = {
    "model",
    "messages",
    "temperature",
    "max_tokens",
    "logprobs",
    "top_logprobs",
    "n",
    "stream",
    "state",
    "questions",
}


@final
class JudgeOracle(TextOracle):
    """P(first > second | prompt) from a language model behind an OpenAI-compatible endpoint.

    The judge is shown the prompt, the whole conversation where it is one, and both responses, each
    quoted so that nothing in it can end its quotation. It is asked about each two different texts
    in both orders, unless `order` says otherwise. What it says that is no verdict is invalid, and
    so is a question without a reply after all retries; nothing is ever guessed. The texts leave
    this machine for the server at `base_url`, and nothing else does but the options below.

    Args:
        model: its name, as the server knows it.
        base_url: of the server, http://localhost:8000/v1 for instance.
        api_key_env: environment variable that holds the key; null, or no text at all, for a server
            without one.
        verdict: json, a reply that is one JSON object with either `better` ("A", "B" or "tie") or
            `probability` (that A is better); logprobs, the log-probabilities of the letters A
            and B in a reply that is one letter; or options, the probabilities of two options that
            `/v1/systemone` of `transformers serve` gives in one forward pass, without writing.
        order: both orders averaged, one of them at random (always the same for a pair), or none.
        template: file with the message to the judge, with the fields {prompt}, {first} and
            {second}; null takes the one for `verdict` that comes with the package.
        system: system message before it; null for none.
        temperature: of the judge's reply; null leaves it to the server.
        max_tokens: of the reply; null leaves the limit to the server. A reply that is cut is no
            verdict.
        extra_body: further fields of the request, as the server documents them.
        concurrency: requests on their way at once.
        requests_per_minute: at most, evenly spaced; null for no limit.
        timeout: seconds for a whole request.
        retries: attempts after the first, where a request failed for a reason that may pass. While
            there is no connection at all it is tried on, as long as `patience` lasts.
        backoff: seconds before the first retry; doubled for each further one, with jitter. Where
            the server says how long to wait, that long.
        patience: seconds without any answer after which the judge is taken for down, and the run
            ends with a checkpoint.
        top_logprobs: tokens that the server is to list with verdict logprobs, A and B among them;
            20 is the most that most servers list, and some list fewer.
    """

    tolerance = 1e-6  # the rounding of P and 1 - P to the precision of the responses' weights
    asks_in_parallel = True  # each call has its own requests, `concurrency` of them
    may_change_on_resume = frozenset(
        {"base_url", "api_key_env", "concurrency", "requests_per_minute"}
        | {"timeout", "retries", "backoff", "patience"}
    )

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key_env: str | None = "OPENAI_API_KEY",
        verdict: VerdictFrom = "json",
        order: Order = "both",
        template: str | None = None,
        system: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = 256,
        extra_body: dict[str, Any] | None = None,
        concurrency: int = 32,
        requests_per_minute: float | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 0.5,
        patience: float = 300.0,
        top_logprobs: int = 20,
    ) -> None:
        super().__init__()
        api_key_env = api_key_env or None  # on a command line null would be a text
        refuse_endpoint(base_url, api_key_env)
        _refuse_choices(model, verdict, order, system)
        _refuse_numbers(temperature, max_tokens, top_logprobs, verdict)
        self.limits = RateLimits(
            concurrency, requests_per_minute, timeout, retries, backoff, patience
        )
        _refuse_extra(extra_body)
        self.verdict = verdict
        self.order = order
        self.symmetric = order != "none"
        self.draws_answers = verdict == "json" and temperature != 0
        path = FOLDER / f"judge_{verdict}.txt" if template is None else Path(template)
        self.template = read_template(path)
        self.system = system
        # All of a request but the messages.
        self.request: dict[str, Any] = {"model": model, **(extra_body or {})}
        for name, value in (("temperature", temperature), ("max_tokens", max_tokens)):
            if value is not None and verdict != "options":  # nothing is drawn there
                self.request[name] = value
        if verdict == "logprobs":
            self.request |= {"logprobs": True, "top_logprobs": top_logprobs}
        self.state = JudgeState()
        endpoint = Endpoint(base_url, api_key_env)
        endpoint.key()  # refuses a missing one before anything else is made
        self.client = JudgeClient(endpoint, timeout, FORMS[verdict])

    @property
    @override
    def fingerprint(self) -> str:
        """Server, model and all that the judge is shown."""
        shown = {
            "base_url": self.client.endpoint.base_url,
            "template": self.template,
            "system": self.system,
            "verdict": self.verdict,
            "order": self.order,
            **self.request,
        }
        return f"judge {json.dumps(shown, sort_keys=True)}"

    @property
    @override
    def last_error(self) -> str:
        """What the judge said last that was no verdict, shortened; empty where there is nothing."""
        return self.state.last_error

    @override
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        return in_order(self.in_given_order, questions, self.order, self.told)

    @override
    def in_given_order(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Ask the judge once about each question, with its first response shown first, as A.

        Raises:
            OracleStoppedError: the judge is down, or a budget is spent.
            UserError: the server refuses all questions alike.
        """
        scheduler = RequestScheduler(
            self.client, self.limits, self.state, self.ledger, questions, self._body
        )
        for number, completion in scheduler.run():
            yield number, math.nan if completion is None else self._verdict(completion)

    def probe(self, question: Question) -> Completion | Failure:
        """What comes of one request for a question, its first response shown as A; it is counted.

        Raises:
            OracleStoppedError: a budget is spent.
        """
        self.ledger.charge(queries=1, requests=1)
        outcome = self.client.ask_once(self._body(question))
        if isinstance(outcome, Completion):
            self.ledger.charge(
                prompt_tokens=outcome.prompt_tokens, reply_tokens=outcome.reply_tokens
            )
        return outcome

    def read(self, completion: Completion) -> Verdict:
        """How a completion is read."""
        return self.client.form.verdict(completion)

    def _body(self, question: Question) -> dict[str, Any]:
        text = render(self.template, question.conversation, question.first, question.second)
        return {**self.request, **self.client.form.ask(text, self.system)}

    def _verdict(self, completion: Completion) -> float:
        verdict = self.read(completion)
        if verdict.why == NO_LOG_PROBS and not self.state.has_verdicts:
            raise UserError(
                f"{NO_LOG_PROBS}: set the judge's verdict to json, or take a server that has "
                "`logprobs` and `top_logprobs`"
            )
        if verdict.why:
            why, words = map(self.client.presentable, (verdict.why, completion.text))
            self.state.last_error = f"no verdict, for {why}, but {words or 'nothing'}"
        else:
            self.state.has_verdicts = True
        return verdict.probability


def _refuse_choices(model: str, verdict: str, order: str, system: str | None) -> None:
    if not model:
        raise UserError("the judge's model needs a name: the one that its server knows it by")
    if verdict not in FORMS:
        raise UserError(
            f"the judge's verdict must be one of {', '.join(FORMS)}, but it is {verdict!r}"
        )
    if verdict == "options" and system is not None:
        raise UserError(
            "the judge has no system message with verdict options: write it into its template"
        )
    refuse_order("the judge's order", order)


def _refuse_numbers(
    temperature: float | None, max_tokens: int | None, top_logprobs: int, verdict: str
) -> None:
    if temperature is not None and not 0 <= temperature < math.inf:
        raise UserError(
            f"the judge's temperature must be 0 or a number above, but it is {temperature}"
        )
    least = 2 if verdict == "logprobs" else 1  # a letter, and the end
    if max_tokens is not None and max_tokens < least:
        raise UserError(
            f"the judge's max_tokens must be at least {least} with verdict {verdict}, "
            f"but it is {max_tokens}"
        )
    if top_logprobs < 2:  # A and B
        raise UserError(f"the judge's top_logprobs must be at least 2, but it is {top_logprobs}")


def _refuse_extra(extra_body: Mapping[str, Any] | None) -> None:
    if own := sorted(_RESERVED & (extra_body or {}).keys()):
        raise UserError(
            f"the judge's extra_body holds {own[0]}, which the oracle sets itself: leave it out"
        )
    try:
        json.dumps(extra_body, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the judge's extra_body cannot be written as JSON: {error}") from error
