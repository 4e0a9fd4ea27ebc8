"""The order of the responses taken out of an oracle's answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.text_oracle import Answer, Order, Question, TextOracle, in_order, refuse_order
from nlhf_zoo.oracles.wrappers.base import WrappedTextOracle


@final
class OrderSwap(WrappedTextOracle):
    r"""An oracle that prefers a place, asked about both orders of each pair.

    .. math:: P(a > b) = \tfrac{1}{2} (p(a, b) + 1 - p(b, a)) \quad \text{for both orders}

    with p(a, b) the oracle's own probability that a is better when it is shown first. Judges and
    pair models have an option for this of their own; a rule has none.

    Args:
        oracle: who is asked; one whose answer to the swapped question may be another.
        order: both: ask twice, and average. random: ask once, in an order that the texts
            themselves toss for, so that a pair is always shown alike: for half the cost, the place
            still counts in each answer, but no more on average. none: ask as it comes.

    Raises:
        UserError: the oracle has the same answer for both orders.
    """

    def __init__(self, oracle: TextOracle, order: Order = "both") -> None:
        super().__init__(oracle)
        refuse_order("OrderSwap.order", order)
        if oracle.symmetric:
            raise UserError(
                f"{type(oracle).__name__} has one answer for both orders of a pair, so OrderSwap "
                "would only cost a second question: leave it out, or set a rule's check_symmetry "
                "to false"
            )
        self.order: Order = order
        self.symmetric = order != "none"
        # The rounding of P and 1 - P to the precision of the responses' weights.
        self.tolerance = 1e-6

    @property
    @override
    def fingerprint(self) -> str:
        return f"order {self.order}\n{self.oracle.fingerprint}"

    @override
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        return in_order(self.oracle.answers, questions, self.order, self.told)
