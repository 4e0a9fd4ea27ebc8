"""A Python function as the judge; ready-made ones stand in ``nlhf_zoo/oracles/rules/__init__.py``.

They stay there as they are, and new ones go into a file of their own: the fingerprint of a rule has
the name of its module and the text of its file, and cached answers are found by it.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import UserError, shown
from nlhf_zoo.oracles.rules.fingerprint import UnseenError, rule_fingerprint
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.records import Conversation

_CHECKED = 3  # batches whose pairs are asked about in both orders


@final
class RuleOracle(TextOracle):
    """P(first > second | prompt) from a Python function of the three texts.

    The function gives a number in [0, 1], or None (or NaN) where it has no answer: such a pair is
    invalid. In a configuration it is named by its import path, as in `my_rules.shorter_wins` for a
    file my_rules.py in the folder where `nlhf` runs; or it is a class with `class_path` and
    `init_args` whose instances can be called, such as those of nlhf_zoo.oracles.rules.

    A rule that has a method `score` of (prompt, response), with P(first > second) = sigma(score of
    the first - score of the second), gives these to algorithms that take scores.

    It is asked once for each two different texts among the responses to a prompt: P(y' > y) is
    1 - P(y > y'), and P(y > y) = 1/2. Of a conversation it reads the last message.

    Args:
        function: P(first > second) of (prompt, first, second).
        check_symmetry: ask about the pairs of the first three batches in the other order too (these
            questions are not counted as queries), and end the run where the two probabilities do
            not sum to 1.
    """

    tolerance = 1e-6  # the rounding of P and 1 - P to the precision of the responses' weights

    def __init__(
        self, function: Callable[[str, str, str], float | None], check_symmetry: bool = True
    ) -> None:
        super().__init__()
        self.name = _name(function)
        _refuse_signature(function, self.name)
        self.function = function
        self.check_symmetry = check_symmetry
        self.symmetric = check_symmetry  # one that is not checked may prefer a place
        self._unchecked = _CHECKED if check_symmetry else 0
        # Now, for its file may be edited while it answers.
        self._digest, self._unseen = "", ""
        try:
            self._digest = rule_fingerprint(function)
        except UnseenError as error:  # which matters to a cache alone
            self._unseen = str(error)

    @property
    @override
    def fingerprint(self) -> str:
        """Its name, its source and its options as they were when the oracle was made.

        A rule that was rewritten is another rule; see `rule_fingerprint`.

        Raises:
            UserError: what the function holds cannot be described.
        """
        if self._unseen:
            raise UserError(
                f"answers of the rule {self.name} cannot be remembered, for {self._unseen}: "
                "give the rule a name in a module, or leave out CachedOracle"
            )
        return f"rule {self.name} {self._digest}"

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """Ask without the check of symmetry, as a report of the asymmetry does."""
        batches, self._unchecked = self._unchecked, 0
        try:
            yield
        finally:
            self._unchecked = batches

    @override
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Ask the function.

        Raises:
            UserError: the function fails or gives no probability, or its answers for two orders do
                not sum to 1.
        """
        for number, question in enumerate(questions):
            texts = question.prompt, question.first, question.second
            self.count([question])
            answer = self._ask_function(*texts)
            if self._unchecked:
                self._refuse_asymmetry(*texts, answer)
            yield number, answer
        self._unchecked = max(0, self._unchecked - 1)

    @property
    @override
    def has_scores(self) -> bool:
        return callable(getattr(self.function, "score", None))

    @override
    def _scores(self, texts: Sequence[tuple[Conversation, str]]) -> Tensor:
        """What the rule's `score` says.

        Raises:
            UserError: it fails, or gives no number.
        """
        found = [self._ask_score(talk[-1]["content"], text) for talk, text in texts]
        return torch.tensor(found, dtype=torch.float64)

    def _ask_score(self, prompt: str, response: str) -> float:
        """The rule's score of a response; NaN for none."""
        case = f"prompt {shown(prompt)}, response {shown(response)}"
        try:
            score = self.function.score(prompt, response)  # type: ignore[attr-defined]
            value = math.nan if score is None else float(score)
        except Exception as error:  # of the user's own code: of any kind
            cause = f"{type(error).__name__}: {error}"
            raise UserError(f"the rule {self.name} failed with {cause}; {case}") from error
        if isinstance(score, str) or math.isinf(value):
            raise UserError(
                f"the rule {self.name} gave the score {score!r}, and no finite number nor None; "
                + case
            )
        return value

    def _ask_function(self, prompt: str, first: str, second: str) -> float:
        """The function's answer; NaN for none."""
        try:
            answer = self.function(prompt, first, second)
            value = math.nan if answer is None else float(answer)
        except Exception as error:  # of the user's own code: of any kind
            cause = f"{type(error).__name__}: {error}"
            raise UserError(
                f"the rule {self.name} failed with {cause}; {_case(prompt, first, second)}"
            ) from error
        if isinstance(answer, str) or not (math.isnan(value) or 0 <= value <= 1):
            raise UserError(
                f"the rule {self.name} gave {answer!r}, and no probability in [0, 1] nor None; "
                + _case(prompt, first, second)
            )
        return value

    def _refuse_asymmetry(self, prompt: str, first: str, second: str, answer: float) -> None:
        swapped = self._ask_function(prompt, second, first)
        if abs(answer + swapped - 1) > self.tolerance:  # never of NaN
            raise UserError(
                f"the rule {self.name} gives P(first > second) = {answer:.7g} and "
                f"P(second > first) = {swapped:.7g}, which must sum to 1, so correct it or set "
                f"check_symmetry to false; {_case(prompt, first, second)}"
            )


def _name(function: object) -> str:
    if isinstance(function, functools.partial):
        return f"partial({_name(function.func)})"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{getattr(named, '__qualname__', '')}"


def _refuse_signature(function: Callable[..., object], name: str) -> None:
    """Refuse what cannot be called with three texts, before anything else is made."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # no function at all, or one without a signature, in C
        if callable(function):
            return
        raise UserError(f"function must be a function of three texts, not {function!r}") from None
    try:
        signature.bind("", "", "")
    except TypeError as error:
        raise UserError(
            f"the rule {name} must take (prompt, first, second), but it takes {signature}"
        ) from error


def _case(prompt: str, first: str, second: str) -> str:
    """The question, as a message quotes it."""
    return f"prompt {shown(prompt)}, first {shown(first)}, second {shown(second)}"
