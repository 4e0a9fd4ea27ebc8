"""Rows in shapes that others publish, as rows with our columns.

`hh` is that of Anthropic's HH-RLHF: whole dialogues as text, each turn behind "Human:" or
"Assistant:". `sharegpt` has messages of `from` and `value`. `arena` has two answers and a `winner`,
as Chatbot Arena and MT-bench publish votes. `messages` has one conversation with its answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import cycle
from typing import Any, Literal

from nlhf_zoo.data.texts.row_source import Row
from nlhf_zoo.data.winners import WINNERS
from nlhf_zoo.errors import UserError

PairFormat = Literal["columns", "hh", "sharegpt", "arena"]
PromptFormat = Literal["columns", "messages", "hh", "sharegpt", "arena"]

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
# Columns that say which of two answers is the better one, in data sets of many publishers.
_VERDICTS: tuple[str, ...] = (
    "winner",
    "winner_model_a",
    "winner_tie",
    "better_response_id",
    "preference",
)
_VERDICTS += ("overall_preference", "label", "labels")


def pair_of(row: Row, shape: PairFormat) -> Row:
    """A row with the columns of a pair.

    Raises:
        UserError: it lacks a column of the shape.
        UnusableRowError: it is no pair.
    """
    return _PAIRS[shape](row)


def prompt_of(row: Row, shape: PromptFormat) -> Any:
    """The prompt of a row, which may end with an answer; raises like `pair_of`."""
    return _PROMPTS[shape](row)


def hint(row: Row, shapes: Collection[str]) -> str:
    """The end of a sentence that says which shape a row has, where it has one of ``shapes``."""
    for shape, is_one in _LOOKS.items():
        if shape in shapes and is_one(row.values):
            return f"; such rows are read with data.format: {shape}"
    return ""


def refuse_verdict(row: Row, mapped: Mapping[str, str]) -> None:
    """Refuse a row that says which answer is better in a column that is not read.

    ``mapped`` are the columns that a user has named, by what they stand for. Were they those of the
    two answers, the first would pass for the better one in every row.
    """
    for name in _VERDICTS:
        if name in row.values and name not in mapped.values():
            raise row.error(
                f"has a column {name!r}, which may say that {mapped['rejected']!r} was preferred, "
                f"while data.columns takes {mapped['chosen']!r} for the preferred one in every row"
                f"{hint(row, _PAIRS) or ': write chosen and rejected by that column'}"
            )


def _hh_pair(row: Row) -> Row:
    names = ("chosen", "rejected")
    return replace(row, values={name: _dialogue(row, name) for name in names})


def _dialogue(row: Row, name: str) -> list[dict[str, str]] | None:
    """The messages of a dialogue; the space behind each speaker's colon is not part of them."""
    text = _column(row, name)
    if text is None:
        return None
    if not isinstance(text, str):
        raise row.error(f"has as {name!r} {row.kind(text)}, not text")
    before, *parts = _HH_TURN.split(text)
    speakers = parts[::2]
    turns = zip(speakers, cycle(("Human", "Assistant")), strict=False)
    if before.strip() or not speakers or any(one != other for one, other in turns):
        raise row.unusable(
            "no dialogue of Human and Assistant by turns",
            f"has as {name!r} a text that is no dialogue of Human and Assistant by turns",
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": said.removeprefix(" ")}
        for speaker, said in zip(speakers, parts[1::2], strict=True)
    ]


def _sharegpt_pair(row: Row) -> Row:
    answers = {
        name: _sharegpt_answer(row, _column(row, name), name) for name in ("chosen", "rejected")
    }
    return replace(row, values={"prompt": _sharegpt_prompt(row), **answers})


def _sharegpt_answer(row: Row, cell: object, name: str) -> object:
    if isinstance(cell, dict):
        cell = [cell]
    return _sharegpt_messages(row, cell, name) if isinstance(cell, list) else cell


def _sharegpt_prompt(row: Row) -> object:
    cell = _column(row, "conversations")
    if not isinstance(cell, list):
        return cell
    return _sharegpt_messages(row, cell, "conversations")


def _sharegpt_messages(row: Row, cell: list[Any], name: str) -> list[dict[str, Any]]:
    for one in cell:
        if not isinstance(one, dict) or not {"from", "value"} <= one.keys():
            raise row.error(f"has among its {name!r} a message without from and value")
    speakers = [str(one["from"]) for one in cell]
    return [
        {"role": _SHAREGPT_ROLES.get(speaker, speaker), "content": one["value"]}
        for speaker, one in zip(speakers, cell, strict=True)
    ]


def _arena_pair(row: Row) -> Row:
    winner = _column(row, "winner")
    share = WINNERS.get(winner) if isinstance(winner, str) else None
    if share is None:
        raise row.unusable(
            f"the winner {winner!r}",
            f"has the winner {winner!r}: write one of {', '.join(WINNERS)}",
        )
    values: dict[str, Any] = {"probability": share}
    if "conversation_a" in row.values:
        for name, side in (("first", "a"), ("second", "b")):
            values[name] = _arena_conversation(row, f"conversation_{side}")
    else:
        values["prompt"] = _column(row, "prompt")
        values |= {"first": _column(row, "response_a"), "second": _column(row, "response_b")}
    return replace(row, values=values)


def _arena_conversation(row: Row, name: str) -> object:
    """A conversation whose messages are texts; one may be a list of parts that are."""
    cell = _column(row, name)
    if not isinstance(cell, list):
        return cell
    return [
        one | {"content": _joined(row, one["content"])}
        if isinstance(one, dict) and isinstance(one.get("content"), list)
        else one
        for one in cell
    ]


def _joined(row: Row, parts: list[Any]) -> str:
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise row.unusable(
            "a message that is not text alone", "has a message that is not text alone"
        )
    return "".join(text for text in texts if text)


def _arena_prompt(row: Row) -> object:
    if "conversation_a" in row.values:
        return _arena_conversation(row, "conversation_a")
    return _column(row, "prompt")


def _column(row: Row, name: str) -> Any:
    if name not in row.values:
        raise row.error(
            f"has no column {name!r}, which data.format reads; it has "
            f"{', '.join(row.values) or 'none'}"
        )
    return row.values[name]


def _is_sharegpt(values: Mapping[str, Any]) -> bool:
    cell = values.get("conversations")
    return isinstance(cell, list) and bool(cell) and isinstance(cell[0], dict) and "from" in cell[0]


_PAIRS: dict[str, Callable[[Row], Row]] = {
    "columns": lambda row: row,
    "hh": _hh_pair,
    "sharegpt": _sharegpt_pair,
    "arena": _arena_pair,
}
_PROMPTS: dict[str, Callable[[Row], Any]] = {
    "messages": lambda row: _column(row, "messages"),
    "hh": lambda row: _dialogue(row, "chosen"),
    "sharegpt": _sharegpt_prompt,
    "arena": _arena_prompt,
}
_LOOKS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "arena": lambda values: (
        "winner" in values and {"conversation_a", "response_a"} & values.keys() != set()
    ),
    "sharegpt": _is_sharegpt,
    "hh": lambda values: (
        isinstance(values.get("chosen"), str) and bool(_HH_TURN.match(values["chosen"]))
    ),
    "messages": lambda values: isinstance(values.get("messages"), list),
}


def refuse_format(shape: str, shapes: object, **unread: bool) -> None:
    """Refuse a shape that is none of ``shapes``, and options that it does not read, by name."""
    names = getattr(shapes, "__args__", ())
    if shape not in names:
        raise UserError(f"data.format is one of {names}, not {shape!r}")
    for option, is_given in unread.items():
        if is_given and shape != "columns":
            raise UserError(
                f"data.{option} is for data.format columns, and {shape} has columns of its own: "
                "leave one of them out"
            )
