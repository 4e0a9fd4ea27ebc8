"""Pairs of responses as their owners keep them, checked: rows with labels or probabilities."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nlhf_zoo.data.texts.conversations import checked_text, checked_unicode, conversation, message
from nlhf_zoo.data.texts.json_lines import kind
from nlhf_zoo.data.texts.row_source import RowSource
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Conversation

Unusable = Literal["refuse", "drop"]
EXAMPLE = '{"prompt": "...", "chosen": "...", "rejected": "..."}'


@dataclass(frozen=True)  # no slots: jsonargparse reads the defaults by vars()
class Columns:
    """What the rows call the parts of a pair.

    Args:
        prompt: the prompt.
        chosen: the response that was preferred.
        rejected: the other one.
        first: a response, where a row has a probability.
        second: the other one.
        probability: P(first > second).
    """

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    first: str = "first"
    second: str = "second"
    probability: str = "probability"

    def __post_init__(self) -> None:
        """Refuse one name for two columns.

        Raises:
            UserError: two have the same name.
        """
        names = list(vars(self).values())
        if len({*names}) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"data.columns has the name {twice!r} twice")


@dataclass(frozen=True, slots=True)
class PairRow:
    """One pair.

    Args:
        row: its number in the source, from 0.
        conversation: the prompt; one of plain text is one message of the user's.
        first: a response; of labels, the chosen one.
        second: the other.
        probability: P(first > second), 1 of labels.
    """

    row: int
    conversation: Conversation
    first: str
    second: str
    probability: float

    @property
    def prompt_key(self) -> str:
        """The prompt as one text that no other prompt has."""
        return json.dumps([[one["role"], one["content"]] for one in self.conversation])


def read_pairs(
    source: RowSource, columns: Columns, unusable: Unusable = "refuse"
) -> tuple[list[PairRow], int]:
    """Read and check the rows.

    Args:
        source: where they are kept.
        columns: what they call the parts of a pair.
        unusable: refuse rows whose responses are equal, or one of which is empty; or drop them.

    Returns:
        the pairs, and the number of rows that were dropped.

    Raises:
        UserError: a row is no pair, or there is none.
    """
    pairs: list[PairRow] = []
    dropped = 0
    labelled: bool | None = None
    for row, values in source.rows():
        where = source.where(row)
        has_label = _has_label(values, columns, where)
        if labelled not in (None, has_label):
            here, before = (
                ("a label", "a probability") if has_label else ("a probability", "a label")
            )
            raise UserError(
                f"{where} has {here}, and the rows before it {before}: give two files, or make "
                "all of them probabilities (a label is the probability 1)"
            )
        labelled = has_label
        pair = _pair(row, values, columns, has_label, where)
        if problem := _problem(pair, columns, has_label):
            if unusable == "refuse":
                raise UserError(
                    f"{where} {problem}: correct it, or set data.unusable to drop to leave such "
                    "rows out"
                )
            dropped += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise UserError(
            f"{source.path} has no {'rows' if not dropped else 'row that can be used'}: there are "
            "no pairs to learn from"
        )
    return pairs, dropped


def hold_out(pairs: Sequence[PairRow], num: int, seed: int) -> tuple[list[PairRow], list[PairRow]]:
    """Keep some prompts, with all of their pairs, out of training.

    Args:
        pairs: all pairs.
        num: how many prompts.
        seed: which ones.

    Returns:
        pairs to train on, and pairs held out, both in the order of their rows.

    Raises:
        UserError: no prompt would be left.
    """
    keys = list(dict.fromkeys(pair.prompt_key for pair in pairs))
    if num >= len(keys):
        raise UserError(
            f"data.num_validation is {num}, which leaves none of {len(keys)} different prompts to "
            "train on"
        )
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed))
    held_out = {keys[place] for place in order[:num].tolist()}
    parts: tuple[list[PairRow], list[PairRow]] = ([], [])
    for pair in pairs:
        parts[pair.prompt_key in held_out].append(pair)
    return parts


def first_prompts(pairs: Sequence[PairRow], num: int) -> list[PairRow]:
    """All pairs of the first so many prompts.

    Raises:
        UserError: there are not so many.
    """
    keys = list(dict.fromkeys(pair.prompt_key for pair in pairs))
    if num > len(keys):
        raise UserError(
            f"data.num_validation is {num}, but the validation pairs have {len(keys)} different "
            "prompts only"
        )
    kept = {*keys[:num]}
    return [pair for pair in pairs if pair.prompt_key in kept]


def fingerprint(pairs: Iterable[PairRow]) -> str:
    """A name for pairs in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        row = [pair.prompt_key, pair.first, pair.second, pair.probability]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _has_label(values: Mapping[str, Any], columns: Columns, where: str) -> bool:
    """Whether a row says which response was chosen, rather than a probability."""
    label = (columns.chosen, columns.rejected)
    probability = (columns.first, columns.second, columns.probability)
    found = [name for name in label if name in values]
    others = [name for name in probability if name in values]
    if found and others:
        raise UserError(
            f"{where} has both {found[0]!r} and {others[0]!r}: give labels or probabilities, and "
            "name a column that is something else in data.columns"
        )
    needed = label if found or not others else probability
    for name in needed:
        if name not in values:
            raise _no_column(name, where, values)
    return needed is label


def _pair(
    row: int, values: Mapping[str, Any], columns: Columns, has_label: bool, where: str
) -> PairRow:
    names = (columns.chosen, columns.rejected) if has_label else (columns.first, columns.second)
    first, second = (_response(values[name], where, name) for name in names)
    if (first[0] is None) != (second[0] is None):
        raise UserError(
            f"{where} has text and a list of messages as {names[0]!r} and {names[1]!r}: "
            "write both in one way"
        )
    if first[0] != second[0]:
        raise UserError(
            f"{where} has conversations as {names[0]!r} and {names[1]!r} that differ before their "
            "last message: they answer no common prompt"
        )
    prompt = _prompt(values, columns, first[0] or [], where)
    probability = 1.0 if has_label else _probability(values[columns.probability], where, columns)
    return PairRow(row, prompt, first[1], second[1], probability)


def _response(cell: object, where: str, column: str) -> tuple[list[Any] | None, str]:
    """What is said before a response, None where it is text alone; and the response."""
    if isinstance(cell, str):
        return None, checked_unicode(cell, where, column)
    if not isinstance(cell, list):
        raise UserError(
            f"{where} has neither text nor a list of messages as {column!r}, but {kind(cell)}"
        )
    last = cell[-1] if cell else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise UserError(
            f"{where} has messages as {column!r} that do not end with the assistant's, which "
            "would be the response"
        )
    if not isinstance(last.get("content"), str):
        raise UserError(
            f"{where} has as {column!r} a message whose content is {kind(last.get('content'))}, "
            "not text"
        )
    return cell[:-1], checked_unicode(last["content"], where, column)


def _prompt(
    values: Mapping[str, Any], columns: Columns, beginning: list[Any], where: str
) -> Conversation:
    """The prompt: the common beginning of the responses, and the prompt's column."""
    begun = conversation(beginning, where) if beginning else None
    if columns.prompt not in values:
        if begun is None:
            raise _no_column(columns.prompt, where, values)
        return begun
    cell = values[columns.prompt]
    if isinstance(cell, str):
        told: Conversation = [message("user", checked_text(cell, where, "prompt"))]
    elif isinstance(cell, list):
        told = conversation(cell, where)
    else:
        raise UserError(
            f"{where} has neither text nor a list of messages as {columns.prompt!r}, but "
            f"{kind(cell)}"
        )
    if begun is None:
        return told
    agrees = begun[-1] == told[-1] if isinstance(cell, str) else begun == told
    if not agrees:
        raise UserError(
            f"{where} has a {columns.prompt!r} that is not what its responses answer: leave it "
            "out, or name another column in data.columns.prompt"
        )
    return begun


def _probability(cell: object, where: str, columns: Columns) -> float:
    name = columns.probability
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        raise UserError(f"{where} has {kind(cell)} as {name!r}, not a number in [0, 1]")
    if math.isnan(cell) or not 0 <= cell <= 1:
        raise UserError(f"{where} has {cell} as {name!r}, which is no probability in [0, 1]")
    return float(cell)


def _problem(pair: PairRow, columns: Columns, has_label: bool) -> str:
    """Why nothing can be learnt from a pair; empty where something can."""
    names = (columns.chosen, columns.rejected) if has_label else (columns.first, columns.second)
    for name, text in zip(names, (pair.first, pair.second), strict=True):
        if not text.strip():
            return f"has an empty {name!r}"
    if pair.first == pair.second:
        return f"has the same text as {names[0]!r} and {names[1]!r}"
    return ""


def _no_column(name: str, where: str, values: Iterable[str]) -> UserError:
    return UserError(
        f"{where} has no column {name!r}: name the columns in data.columns; it has "
        f"{', '.join(values) or 'none'}"
    )
