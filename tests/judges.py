"""Judges of texts that note what they are asked, for tests of what wraps them."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from nlhf_zoo.errors import OracleStoppedError
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.records import Prompts, Responses


def opinion(prompt: str, first: str, second: str) -> float:
    """A probability that depends on all three texts and their order."""
    text = "|".join([prompt, first, second]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48


class Judge(TextOracle):
    """Answers by ``opinion``, the last question first: another answer in the other order.

    It has no answer to the text ``silent``, and stops after so many answers, which cost ``tokens``
    each; its name is its fingerprint.
    """

    symmetric = False

    def __init__(
        self, name: str = "judge", silent: str = "", stops_after: int | None = None, tokens: int = 0
    ) -> None:
        super().__init__()
        self.name, self.silent, self.stops_after, self.tokens = name, silent, stops_after, tokens
        self.asked: list[Question] = []
        self.shown = 0

    @property
    def fingerprint(self) -> str:
        return self.name

    def in_given_order(self, questions: Sequence[Question]) -> Iterator[Answer]:
        self.shown += len(questions)
        return self.answers(questions)

    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        for number in reversed(range(len(questions))):
            question = questions[number]
            if self.stops_after is not None and len(self.asked) >= self.stops_after:
                raise OracleStoppedError("the judge is down")
            self.count([question])
            self.asked.append(question)
            self.ledger.charge(prompt_tokens=self.tokens)
            if self.silent and self.silent in (question.first, question.second):
                yield number, math.nan
            else:
                yield number, opinion(question.prompt, question.first, question.second)


class FairJudge(Judge):
    """A judge whose answer to the swapped question is 1 minus its answer."""

    symmetric = True

    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        turned = [q.first > q.second for q in questions]
        sorted_ones = [
            replace(q.swapped(), again=q.again) if turn else q
            for q, turn in zip(questions, turned, strict=True)
        ]
        for number, answer in super().answers(sorted_ones):
            yield number, 1 - answer if turned[number] else answer


def prompts(
    *texts: str, conversations: Sequence[Sequence[dict[str, str]]] | None = None
) -> Prompts:
    return Prompts(torch.arange(len(texts)), text=texts, conversations=conversations)


def responses(
    *rows: Sequence[str],
    dtype: torch.dtype = torch.float64,
    truncated: Sequence[Sequence[bool]] | None = None,
) -> Responses:
    """Responses of these texts; their tokens are another tokenizer's, and mean nothing."""
    tokens = torch.randint(10**6, (len(rows), len(rows[0]), 3))
    weight = torch.full(tokens.shape[:2], 1 / tokens.shape[1], dtype=dtype)
    cut = None if truncated is None else torch.tensor(truncated)
    return Responses(
        tokens, torch.ones_like(tokens, dtype=torch.bool), weight, text=rows, truncated=cut
    )


def actions(*rows: list[int], enumerated: bool = False) -> Responses:
    """Responses that are rows of a table, with weights drawn."""
    tokens = torch.tensor(rows)[:, :, None]
    weight = torch.softmax(torch.randn(tokens.shape[:2], dtype=torch.float64), -1)
    return Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), weight, enumerated)


def questions(*pairs: str, prompt: str = "x") -> list[Question]:
    """Questions of two letters each."""
    talk = [{"role": "user", "content": prompt}]
    return [Question(talk, first, second) for first, second in pairs]


def beats(prompt: str, first: str, second: str) -> float:
    """Rock, paper, scissors, and a well that loses to paper alone: a rule that is intransitive."""
    wins = ["paper rock", "scissors paper", "rock scissors", "well rock", "well scissors"]
    wins.append("paper well")
    if f"{first} {second}" in wins:
        return 0.9 if prompt == "play" else 0.7
    return 1 - beats(prompt, second, first) if f"{second} {first}" in wins else 0.5
