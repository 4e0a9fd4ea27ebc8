"""In which order the two responses of a question are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from nlhf_zoo.oracles.text_oracle import Answer, Question

# none: as the question has them; random: by a coin that the texts themselves toss, so that a pair
# is always shown alike; both: in both orders, and the two probabilities averaged.
Order = Literal["none", "random", "both"]
ORDERS: tuple[Order, ...] = ("none", "random", "both")
AsShown = Callable[[Sequence[Question]], Iterator[Answer]]


def in_order(ask: AsShown, questions: Sequence[Question], order: Order) -> Iterator[Answer]:
    r"""Ask with the responses in an order, and say P(first > second).

    .. math:: P(a > b) = \tfrac{1}{2} (p(a, b) + 1 - p(b, a)) \quad \text{for both orders}

    with p(a, b) the probability that a is better when it is shown first. Where one of two answers
    is missing there is none.

    Args:
        ask: what the oracle thinks of questions as they are shown.
        questions: different ones.
        order: see ``Order``.

    Yields:
        number of a question, and P(first > second), NaN where it could not be had.
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
        said = 1 - answer if is_swapped else answer
        if number in half:
            yield number, (half.pop(number) + said) / 2
        else:
            half[number] = said


def tossed(question: Question) -> bool:
    """Whether a pair is shown in the other order: a coin that is the same for both of its orders.

    It says which of the two texts comes first, so that the two orders of a question are shown
    alike.
    """
    heads = bool(question.digest("order", ordered=False)[0] & 1)
    ascending = (question.first, question.first_cut) < (question.second, question.second_cut)
    return heads == ascending
