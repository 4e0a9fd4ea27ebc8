"""A judge of one's own, an object that is asked about batches of pairs, as TRL's were."""

from __future__ import annotations

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, final

from typing_extensions import override

from nlhf_zoo.errors import OracleStoppedError, UserError, cause, shown
from nlhf_zoo.oracles.text_oracle import Answer, Order, Question, TextOracle, in_order, refuse_order
from nlhf_zoo.records import Conversation


class PairwiseJudge(ABC):
    """Whoever has a method `judge`: any class with one counts as a subclass of this one.

    `judge(prompts, completions, shuffle_order)` gets n prompts, as texts, and n pairs of responses,
    and gives n ranks: 0 where the first response is the better one, 1 where the second is, and -1
    or None where it cannot say.
    """

    @abstractmethod
    def judge(
        self, prompts: list[str], completions: list[list[str]], shuffle_order: bool = True
    ) -> list[Any]:
        """Ranks of the better responses [n]."""

    @classmethod
    @override
    def __subclasshook__(cls, other: type) -> bool:
        if cls is PairwiseJudge and callable(getattr(other, "judge", None)):
            return True
        return NotImplemented  # type: ignore[no-any-return]


@final
class PairwiseJudgeOracle(TextOracle):
    """P(first > second | prompt) from a judge of one's own, an object with a method `judge`.

    The judge is called as TRL called its pairwise judges, `judge(prompts, completions,
    shuffle_order=False)`: the orders are this oracle's to swap, so that a -1 stays one, and is
    invalid. Whatever else than 0, 1, -1 and None it says ends the run. A prompt of one message is
    its text; of a longer conversation each message stands in a paragraph, behind its role.

    Args:
        judge: an object with such a method; in a configuration its class, with its options.
        scores: the judge takes `return_scores=True` too, and then gives P(first > second) in [0,
            1], as PairRM's did; false takes ranks.
        order: in which the responses are shown: both orders averaged, one of them at random (always
            the same for a pair), or none.
        batch_size: pairs of a call.
        version: a text under which answers may be remembered, to be changed whenever the judge is
            another one; null refuses to remember them.

    Raises:
        UserError: an option is out of its range, or the judge does not take such a call.
    """

    tolerance = 1e-6  # the rounding of P and 1 - P to the precision of the responses' weights

    def __init__(
        self,
        judge: PairwiseJudge,
        scores: bool = False,
        order: Order = "both",
        batch_size: int = 32,
        version: str | None = None,
    ) -> None:
        super().__init__()
        refuse_order("the judge's order", order)
        if batch_size < 1:
            raise UserError(f"the judge's batch_size must be at least 1, not {batch_size}")
        self.name = type(judge).__qualname__
        self._asking: dict[str, Any] = {"shuffle_order": False}
        if scores:
            self._asking["return_scores"] = True
        _refuse_signature(judge, self.name, self._asking)
        self.judge = judge
        self.scores = scores
        self.order = order
        self.symmetric = order != "none"
        self.batch_size = batch_size
        self.version = version

    @property
    @override
    def fingerprint(self) -> str:
        """The version that its owner gave it.

        Raises:
            UserError: there is none.
        """
        if self.version is None:
            raise UserError(
                f"answers of the judge {self.name} cannot be remembered, for nobody knows when it "
                "is another one: set its version to a text, or leave out CachedOracle"
            )
        return f"pairwise judge {json.dumps([self.version, self.scores, self.order])}"

    @override
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        return in_order(self.in_given_order, questions, self.order, self.told)

    @override
    def in_given_order(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Ask the judge about batches of questions, with their first responses shown first.

        Raises:
            OracleStoppedError: the judge failed, or a budget is spent.
            UserError: what it said is no answer.
        """
        for start in range(0, len(questions), self.batch_size):
            asked, stopped = self.admitted(questions[start : start + self.batch_size])
            if asked:
                yield from enumerate(self._ask_judge(asked), start)
            if stopped is not None:
                raise stopped

    def _ask_judge(self, asked: Sequence[Question]) -> list[float]:
        """P(first > second) of each, NaN for none."""
        prompts = [written(one.conversation) for one in asked]
        pairs = [[one.first, one.second] for one in asked]
        try:
            said = list(self.judge.judge(prompts, pairs, **self._asking))
        except Exception as error:  # of the user's own code: of any kind
            raise OracleStoppedError(
                f"the judge {self.name} failed with {type(error).__name__}: {cause(error)}"
            ) from error
        if len(said) != len(asked):
            raise UserError(f"the judge {self.name} gave {len(said)} answers to {len(asked)} pairs")
        return [self._read(answer, question) for answer, question in zip(said, asked, strict=True)]

    def _read(self, answer: Any, question: Question) -> float:
        """P(first > second) by one answer."""
        try:
            value = math.nan if answer is None else float(answer)
        except (TypeError, ValueError):
            value = math.inf
        if math.isnan(value) or value == -1:
            return math.nan
        if self.scores and 0 <= value <= 1:
            return value
        if not self.scores and value in (0.0, 1.0):
            return 1.0 - value
        wanted = "a probability in [0, 1]" if self.scores else "0 or 1"
        raise UserError(
            f"the judge {self.name} said {answer!r:.80}, and neither {wanted} nor -1 or None for "
            f"no answer; prompt {shown(question.prompt)}, first {shown(question.first)}, "
            f"second {shown(question.second)}"
        )


def written(conversation: Conversation) -> str:
    """A prompt as one text: its message, or the messages of a conversation, each by its role."""
    if len(conversation) == 1:
        return conversation[0]["content"]
    return "\n\n".join(f"{one['role'].capitalize()}: {one['content']}" for one in conversation)


def _refuse_signature(judge: object, name: str, asking: dict[str, Any]) -> None:
    """Refuse a judge that cannot be called so, before anything else is made."""
    method = getattr(judge, "judge", None)
    if not callable(method):
        raise UserError(f"the judge must be an object with a method `judge`, but {name} has none")
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # without a signature, in C
        return
    try:
        signature.bind([], [], **asking)
    except TypeError as error:
        options = ", ".join(f"{option}={value}" for option, value in asking.items())
        raise UserError(
            f"the judge {name} must take judge(prompts, completions, {options}), but it takes "
            f"{signature}"
        ) from error
