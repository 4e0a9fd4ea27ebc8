"""An oracle that says what it thinks of a pair in the order in which it is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from typing_extensions import override

from nlhf_zoo.oracles.judge.oracle import JudgeOracle
from nlhf_zoo.oracles.models.pair import PairTextModelOracle
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.oracles.wrappers.base import WrappedTextOracle
from nlhf_zoo.oracles.wrappers.order_swap import OrderSwap


@final
class GivenOrder(WrappedTextOracle):
    """Another oracle without its own way with orders: each look is a question of its own.

    So that each of the two looks at a pair can be remembered and read by others; whoever averages
    them has what `in_order` gives for both.
    """

    def __init__(self, oracle: TextOracle) -> None:
        super().__init__(oracle)
        self.symmetric = False

    @property
    @override
    def fingerprint(self) -> str:
        return f"in the given order\n{self.oracle.fingerprint}"

    @override
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        return self.oracle.in_given_order(questions)


def has_places(oracle: TextOracle) -> bool:
    """Whether an oracle looks at one of the responses first, and it may matter at which.

    Of a cache, of what is served elsewhere and of a rule it is known by ``symmetric`` alone.
    """
    looks = isinstance(oracle, JudgeOracle | PairTextModelOracle | OrderSwap)
    return looks or not oracle.symmetric
