"""What oracles that read texts have in common: questions about pairs of texts."""

from __future__ import annotations

import hashlib
import json
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.data.texts import conversation_key
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.ledger import Ledger
from nlhf_zoo.records import Comparison, Conversation, Prompts, Responses

# One answer: the number of the question, and P(first > second), NaN where it could not be had.
Answer = tuple[int, float]
# Told of a question, P(first > second) as said with the first shown first, and shown second.
Told = Callable[["Question", float, float], None]
_Written = tuple[str, bool]  # a response: its text, and whether it was cut before it ended


@dataclass(frozen=True, slots=True)
class Question:
    """Which of two different responses to a prompt is better?

    Args:
        conversation: the prompt; one of plain text is one message of the user's.
        first: text of the first response.
        second: text of the second response.
        first_truncated: whether the first was cut at the limit of tokens; False for oracles that
            do not read this.
        second_truncated: likewise.
        again: whether the pair was asked about in the other order before: that is a swapped call,
            and no other query.
    """

    conversation: Conversation
    first: str
    second: str
    first_truncated: bool = False
    second_truncated: bool = False
    again: bool = False

    @property
    def prompt(self) -> str:
        """The last message of the prompt."""
        return self.conversation[-1]["content"]

    @property
    def prompt_key(self) -> str:
        """The prompt as one text that no other prompt has."""
        return conversation_key(self.conversation)

    @property
    def is_ascending(self) -> bool:
        """Whether the first response is the lesser: of the two orders one is, and one is not."""
        return (self.first, self.first_truncated) < (self.second, self.second_truncated)

    def swapped(self) -> Question:
        """The same pair in the other order, to be asked about again."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            first_truncated=self.second_truncated,
            second_truncated=self.first_truncated,
            again=True,
        )

    def digest(self, oracle: str, ordered: bool) -> bytes:
        """A name for the question, 16 bytes; in either order the same unless ``ordered``.

        Args:
            oracle: fingerprint of who is asked.
            ordered: whether the order of the responses matters.
        """
        pair = [[self.first, self.first_truncated], [self.second, self.second_truncated]]
        text = json.dumps([oracle, self.prompt_key, pair if ordered else sorted(pair)])
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


class TextOracle(PreferenceOracle):
    """An oracle that is asked about pairs of texts.

    A subclass says in ``answers`` what it thinks of each question. This class makes the questions
    from prompts and responses: one for each two different texts among the responses to a prompt,
    however often they occur; P(y' > y) is 1 - P(y > y'), and P(y > y) = 1/2 is never asked.
    """

    symmetric: bool = True  # its answer to a question is 1 minus that to the swapped one
    reads_truncated: bool = False  # whether it matters that a response was cut before it ended
    learns: bool = False  # whether what it answers depends on what it was asked before
    told: Told | None = None  # who is told what was said of each order, where both are asked

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()

    @abstractmethod
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """P(first > second) of each question, as soon as it is known, in any order.

        Each question's number comes exactly once, with a probability in [0, 1], or with NaN for an
        answer that could not be had. Who is really asked calls ``count`` before asking.

        Args:
            questions: different ones.

        Yields:
            number of a question among these, and its answer.

        Raises:
            OracleStoppedError: it cannot go on, after all answers that it has were handed out.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A text that differs where answers may differ: model, template, options.

        It holds no secret. Equal fingerprints mean that a remembered answer is this oracle's own.

        Raises:
            UserError: answers cannot be remembered, since they are drawn anew each time, say.
        """

    @property
    def last_error(self) -> str:
        """What came last in place of an answer, without secrets; empty where nothing did."""
        return ""

    def in_given_order(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """As ``answers``, but by one look at the first response first: no order is swapped.

        For diagnostics of a preference for a place. Who swaps orders itself overrides this.
        """
        return self.answers(questions)

    def count(self, questions: Sequence[Question]) -> None:
        """Count questions before they are asked; an OracleStoppedError where a budget ends."""
        again = sum(question.again for question in questions)
        self.ledger.charge(queries=len(questions) - again, swapped=again)

    def admitted(
        self, questions: Sequence[Question]
    ) -> tuple[Sequence[Question], OracleStoppedError | None]:
        """Count questions as far as a budget allows: those to be asked, and what stopped others."""
        for number, question in enumerate(questions):
            try:
                self.count([question])
            except OracleStoppedError as stopped:
                return questions[:number], stopped
        return questions, None

    @override
    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        """Ask about each two different texts.

        Raises:
            UserError: there are no texts, or the oracle refuses them.
            OracleStoppedError: the oracle cannot be asked any more.
        """
        questions, places = self.questions(prompts, first, second)
        # Equal responses have place 0: one before the first question is the end of the table of
        # answers, and 1/2 stands there.
        known = torch.tensor([*self._ask(questions), 0.5], dtype=torch.float64)
        answers = known[places.abs() - 1]
        answers = torch.where(places < 0, 1 - answers, answers)
        dtype = torch.promote_types(first.weight.dtype, torch.float32)
        preference = answers.to(first.weight.device, dtype)
        valid = ~preference.isnan()
        return Comparison(preference.masked_fill(~valid, 0.5), valid)

    def questions(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> tuple[list[Question], Tensor]:
        """The questions of a comparison: one for each two different texts.

        Returns:
            them, and where the answer to each pair is found [B, K, L]: n + 1 for question n, and
            -(n + 1) for it in the other order; 0 for equal texts.

        Raises:
            UserError: there are no texts, or the oracle refuses them.
        """
        questions: list[Question] = []
        places: dict[tuple[str, _Written, _Written], int] = {}

        def place(talk: Conversation, key: str, one: _Written, other: _Written) -> int:
            if one == other:
                return 0
            if (key, one, other) not in places:
                questions.append(Question(talk, one[0], other[0], one[1], other[1]))
                places[key, one, other] = len(questions)
                places[key, other, one] = -len(questions)
            return places[key, one, other]

        talks = conversations(prompts, type(self).__name__)
        keys = map(conversation_key, talks)
        rows = zip(talks, keys, self._written(first), self._written(second), strict=True)
        numbers = [
            [[place(talk, key, one, other) for other in theirs] for one in ours]
            for talk, key, ours, theirs in rows
        ]
        shape = len(prompts), first.num, second.num
        return questions, torch.tensor(numbers, dtype=torch.long).reshape(shape)

    @override
    def score(self, prompts: Prompts, responses: Responses) -> tuple[Tensor, Tensor]:
        """Ask for the score of each different text, which is a query.

        Raises:
            UserError: there are no texts.
            OracleStoppedError: a budget does not allow so many.
        """
        if not self.has_scores:
            return super().score(prompts, responses)
        name = type(self).__name__
        texts: list[tuple[Conversation, str]] = []
        places: dict[tuple[str, str], int] = {}
        numbers = []
        rows = response_texts(responses, name)
        for talk, row in zip(conversations(prompts, name), rows, strict=True):
            key = conversation_key(talk)
            for text in row:
                if (key, text) not in places:
                    places[key, text] = len(texts)
                    texts.append((talk, text))
                numbers.append(places[key, text])
        self.ledger.charge(queries=len(texts))
        began = time.perf_counter()
        found = self._scores(texts)
        spent = int(1e6 * (time.perf_counter() - began))
        self.ledger.charge(invalid=int((~found.isfinite()).sum()), microseconds=spent)
        shape = len(prompts), responses.num
        scores = found[torch.tensor(numbers, dtype=torch.long)].reshape(shape)
        scores = scores.to(responses.weight.device)
        valid = scores.isfinite()
        return scores.masked_fill(~valid, 0.0), valid

    def _scores(self, texts: Sequence[tuple[Conversation, str]]) -> Tensor:
        """Scores of prompts with a response, float64 [n]; not finite where one could not be had."""
        raise NotImplementedError(f"{type(self).__name__} has no scores of single responses")

    def _ask(self, questions: Sequence[Question]) -> list[float]:
        """The answer to each question; time and invalid answers are counted."""
        if not questions:
            return []
        found: list[float | None] = [None] * len(questions)
        began = time.perf_counter()
        try:
            for number, answer in self.answers(questions):
                if found[number] is not None or not (math.isnan(answer) or 0 <= answer <= 1):
                    raise RuntimeError(
                        f"{type(self).__name__} answered {answer} to question {number}, and "
                        f"{found[number]} before"
                    )
                found[number] = answer
        finally:  # also of what was answered before it stopped
            answered = [answer for answer in found if answer is not None]
            self.ledger.charge(
                invalid=sum(map(math.isnan, answered)),
                microseconds=int(1e6 * (time.perf_counter() - began)),
            )
        if len(answered) < len(found):
            missing = len(found) - len(answered)
            raise RuntimeError(f"{type(self).__name__} left {missing} questions open")
        return answered

    def _written(self, responses: Responses) -> list[list[_Written]]:
        """Responses as they are compared, B rows of K."""
        texts = response_texts(responses, type(self).__name__)
        truncated = responses.truncated if self.reads_truncated else None
        if truncated is None:
            return [[(text, False) for text in row] for row in texts]
        return [list(zip(*row, strict=True)) for row in zip(texts, truncated.tolist(), strict=True)]


def last_words(oracle: nn.Module) -> str:
    """What came last in place of an answer to an oracle and its parts, to be put behind a figure.

    It is empty where nothing did.
    """
    parts = [part for part in oracle.modules() if isinstance(part, TextOracle)]
    return "".join(f"; its last words: {part.last_error}" for part in parts if part.last_error)


# none: as the question has them; random: by a coin that the texts themselves toss, so that a pair
# is always shown alike; both: in both orders, and the two probabilities averaged.
Order = Literal["none", "random", "both"]
ORDERS: tuple[Order, ...] = ("none", "random", "both")


def refuse_order(name: str, order: str) -> None:
    """Refuse a text that is none of ``ORDERS``, by the name of the option that it was given as."""
    if order not in ORDERS:
        raise UserError(f"{name} must be one of {', '.join(ORDERS)}, not {order!r}")


def in_order(
    ask: Callable[[Sequence[Question]], Iterator[Answer]],
    questions: Sequence[Question],
    order: Order,
    told: Told | None = None,
) -> Iterator[Answer]:
    r"""Ask with the responses in an order, and say P(first > second).

    .. math:: P(a > b) = \tfrac{1}{2} (p(a, b) + 1 - p(b, a)) \quad \text{for both orders}

    with p(a, b) the probability that a is better when it is shown first, as ``ask`` says of
    questions in the order in which they are shown. Where one of two answers is missing there is
    none. ``told`` gets the two.
    """
    if order == "none":
        yield from ask(questions)
        return
    if order == "random":
        turned = [tossed(question) for question in questions]
        shown = [
            replace(question.swapped(), again=question.again) if turn else question
            for question, turn in zip(questions, turned, strict=True)
        ]
        for number, answer in ask(shown):
            yield number, 1 - answer if turned[number] else answer
        return
    # The two orders of a pair follow each other: what breaks off leaves few pairs half asked.
    both = [shown for question in questions for shown in (question, question.swapped())]
    half: dict[int, float] = {}
    for place, answer in ask(both):
        number, is_swapped = divmod(place, 2)
        probability = 1 - answer if is_swapped else answer
        if number in half:
            other = half.pop(number)
            if told is not None:
                first, second = (other, probability) if is_swapped else (probability, other)
                told(questions[number], first, second)
            yield number, (other + probability) / 2
        else:
            half[number] = probability


def tossed(question: Question) -> bool:
    """Whether a pair is shown in the other order, by a coin that says which of the texts is first.

    So both orders of a question are shown alike.
    """
    heads = bool(question.digest("order", ordered=False)[0] & 1)
    return heads == question.is_ascending


def conversations(prompts: Prompts, oracle: str) -> Sequence[Conversation]:
    """The prompts as conversations; plain text is one message of the user's."""
    if prompts.conversations is not None:
        return prompts.conversations
    if prompts.text is None:
        raise UserError(
            f"{oracle} reads texts, but the prompts are rows of a table: "
            "give prompts of text, with --data TextPrompts"
        )
    return [[{"role": "user", "content": text}] for text in prompts.text]


def response_texts(responses: Responses, oracle: str) -> Sequence[Sequence[str]]:
    """The responses as text, B rows of K."""
    if responses.text is None:
        raise UserError(
            f"{oracle} reads texts, but the policy's responses have none: "
            "set model.policy to CausalLMPolicy"
        )
    return responses.text
