"""Answers of a model that reads both responses of a question at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from nlhf_zoo.oracles.text_encoding import TextEncoder
from nlhf_zoo.oracles.text_model import TextModel, admitted
from nlhf_zoo.oracles.text_oracle import Answer, Question


def pair_answers(
    questions: Sequence[Question],
    count: Callable[[Sequence[Question]], None],
    encoder: TextEncoder,
    model: TextModel,
    preferences: Callable[[Tensor], list[float]],
) -> Iterator[Answer]:
    """Read each pair as it is shown, first response first.

    Args:
        questions: different ones.
        count: `TextOracle.count`.
        encoder: writes a pair.
        model: reads it.
        preferences: P(first > second) from a batch of its outputs [b, D]; NaN where there is none.

    Yields:
        number of a question, and its answer, as soon as its batch is read.

    Raises:
        UserError: a prompt does not fit the template.
        OracleStoppedError: a budget does not allow all questions.
    """
    asked, stopped = admitted(count, questions)
    tokens = encoder.encode_pairs(
        [(question.conversation, question.first, question.second) for question in asked]
    )
    for numbers, output in model.stream(tokens):
        yield from zip(numbers, preferences(output), strict=True)
    if stopped is not None:
        raise stopped
