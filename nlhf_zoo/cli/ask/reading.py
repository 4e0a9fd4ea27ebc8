"""Files of pairs or of responses as pairs that people are asked about."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice
from pathlib import Path

from nlhf_zoo.data.texts import Columns, read_drawn
from nlhf_zoo.data.texts.conversations import as_conversation
from nlhf_zoo.data.texts.formats import PairFormat
from nlhf_zoo.data.texts.pair_rows import pairs_of
from nlhf_zoo.data.texts.row_source import Dropped, Row, Unusable, read_lines
from nlhf_zoo.errors import UserError
from nlhf_zoo.people import Pair

_EXAMPLE = '{"prompt": "...", "first": "...", "second": "..."}'
_RESPONSES = ("response", "responses")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a file asks people.

    Args:
        pairs: in the order of the file.
        notes: sentences about what was left out.
    """

    pairs: list[Pair]
    notes: list[str]


def read_asked(
    path: Path,
    shape: PairFormat = "columns",
    unusable: Unusable = "refuse",
    pairs_per_prompt: int | None = None,
    seed: int = 0,
) -> Asked:
    """The pairs of a file of pairs, or pairs of the responses of a file of those.

    Args:
        path: of a .jsonl or .json file.
        shape: of rows that are pairs.
        unusable: refuse or drop rows that are no pair to choose from.
        pairs_per_prompt: of responses; None for all.
        seed: of the choice of these.

    Raises:
        UserError: the file cannot be read, or asks nothing.
    """
    if pairs_per_prompt is not None and pairs_per_prompt < 1:
        raise UserError(f"--pairs_per_prompt must be at least 1, but it is {pairs_per_prompt}")
    rows = read_lines(path, _EXAMPLE)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path} has no lines: write objects such as {_EXAMPLE}")
    if shape == "columns" and any(name in first.values for name in _RESPONSES):
        return _of_responses(path, pairs_per_prompt, seed)
    if pairs_per_prompt is not None:
        raise UserError(f"--pairs_per_prompt is for a file of responses, and {path} has pairs")
    dropped = Dropped(unusable)
    all_rows = map(_with_probability, chain([first], rows))
    pairs = [
        Pair(row.conversation, row.first, row.second)
        for row in pairs_of(all_rows, Columns(), dropped, shape)
    ]
    if not pairs:
        raise UserError(f"{path} has no row that can be used: there is nothing to ask")
    return Asked(pairs, dropped.note(str(path), len(pairs) + dropped.reasons.total()))


def _with_probability(row: Row) -> Row:
    """A row of two responses of which nobody has said anything, as one of which somebody has."""
    if {"first", "second"} <= row.values.keys() and "probability" not in row.values:
        return replace(row, values={**row.values, "probability": 0.5})
    return row


def _of_responses(path: Path, pairs_per_prompt: int | None, seed: int) -> Asked:
    pairs: list[Pair] = []
    equal, alone, stream = 0, 0, random.Random(seed)
    for drawn in read_drawn(path):
        different = [*dict.fromkeys(drawn.texts)]
        equal += len(drawn.texts) - len(different)
        alone += len(different) < 2
        conversation = as_conversation(drawn.prompt)
        for one, other in _chosen(different, pairs_per_prompt, stream):
            pairs.append(Pair(conversation, one, other))
    if not pairs:
        raise UserError(f"{path} has no prompt with two different responses to choose from")
    notes = []
    if equal:
        notes.append(f"{path}: {equal} responses are equal to another one to the same prompt")
    if alone:
        notes.append(f"{path}: {alone} prompts have one response only, of which nothing is asked")
    return Asked(pairs, notes)


def _chosen(
    texts: list[str], number: int | None, stream: random.Random
) -> Iterable[tuple[str, str]]:
    """Pairs of texts: all, or some in which all texts stand about equally often."""
    if number is None or number >= len(texts) * (len(texts) - 1) // 2:
        return combinations(texts, 2)
    return islice(_around(stream.sample(texts, len(texts))), number)


def _around(texts: list[str]) -> Iterator[tuple[str, str]]:
    """All pairs: first of neighbours in a circle, then of those two apart, and so on."""
    number = len(texts)
    for apart in range(1, number // 2 + 1):
        # Half way round, each pair would come twice.
        for place in range(number // 2 if 2 * apart == number else number):
            yield texts[place], texts[(place + apart) % number]
