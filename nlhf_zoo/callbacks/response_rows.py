"""Rows of what a model said: in a file of JSON lines, and as a table that a browser may show."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Conversation

_LONGEST = 2000  # characters of a text in a table


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """A prompt, a response of the policy, one of an opponent, and what the oracle said of them.

    Args:
        round: of the game, counted from 0.
        step: proximal step of the round.
        kind: `rollout` for what was trained on, `fixed` for prompts that are the same each time,
            `validation` for held-out ones.
        prompt: as the data have it, text or messages.
        player: who drew the response, players by their weights.
        response: its text.
        length: its tokens.
        truncated: whether it was cut at the limit of tokens; None where nothing is cut.
        log_ratio: log pi(y) / mu(y) of the policy and the reference as they were when it was
            trained on, computed by the trainer; None where it is not known.
        opponent_player: likewise; None where there is no opponent, as of what follows.
        opponent: text of its response.
        opponent_length: its tokens.
        opponent_truncated: likewise.
        valid: whether the oracle gave an answer; None where it was not asked.
        preference: P(response > opponent); None where there is no valid answer.
        orders: the same as said with the response shown first, and with the opponent shown first;
            None where the oracle was not asked both ways for this row.
    """

    round: int
    step: int
    kind: str
    prompt: str | Conversation
    player: dict[str, float]
    response: str
    length: int
    truncated: bool | None = None
    log_ratio: float | None = None
    opponent_player: dict[str, float] | None = None
    opponent: str | None = None
    opponent_length: int | None = None
    opponent_truncated: bool | None = None
    valid: bool | None = None
    preference: float | None = None
    orders: tuple[float, float] | None = None


class ResponseFile:
    """Rows as JSON lines in a file of the run's folder, appended to while the run goes on.

    Args:
        path: the file; made if it is missing.
        rows: that the checkpoint counts, from which the run goes on; what stands behind them is cut
            off.

    Attributes:
        cut: the rows that were cut off.

    Raises:
        UserError: there are fewer rows than the checkpoint has seen.
    """

    def __init__(self, path: Path, rows: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < rows:
            raise UserError(
                f"{path} holds fewer responses than the checkpoint: it is not of this run"
            )
        self.cut: list[dict[str, Any]] = [json.loads(line) for line in whole[rows:]]
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(sum(map(len, whole[:rows])))
        self._file.seek(0, 2)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows; a lone surrogate, which UTF-8 does not have, by its number, as JSON has it."""
        for row in rows:
            line = json.dumps(row, ensure_ascii=False)
            self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        self.flush()  # a rollout that is read from the disk behind a kill is not heard again

    def flush(self) -> None:
        """Hand everything to the operating system: a kill of this process then loses nothing."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


COLUMNS = ("prompt", "response", "opponent", "preference", "orders", "log ratio", "tokens")


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as text, in the order of ``COLUMNS``."""
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        prompt = "\n".join(f"{one['role']}: {one['content']}" for one in prompt)
    preference = _figure(row["preference"])
    if row["valid"] is False:
        preference = "invalid"
    tokens = _tokens(row["length"], row["truncated"])
    if row["opponent"] is not None:
        tokens += f" / {_tokens(row['opponent_length'], row['opponent_truncated'])}"
    orders = " / ".join(map(_figure, row["orders"] or ()))
    texts = [prompt, row["response"], row["opponent"] or ""]
    return [*texts, preference, orders, _figure(row["log_ratio"]), tokens]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _tokens(length: int, truncated: bool | None) -> str:
    return f"{length} (cut)" if truncated else f"{length}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table of Markdown in which texts are nothing but text."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [[escaped(cell) for cell in cells(row)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """A text for a cell of Markdown: no markup, HTML or border of a cell is read into it.

    All but letters, digits and spaces are written by their numbers, which neither Markdown nor HTML
    reads as anything else; control characters, which have none, as U+FFFD. A text that is too long
    for a table is cut, and says so.
    """
    left_out = len(text) - _LONGEST
    shown = "".join(map(_character, text[:_LONGEST]))
    return shown if left_out <= 0 else f"{shown} (and {left_out} more characters)"


def _character(one: str) -> str:
    if one.isalnum() or one == " ":
        return one
    if one == "\n":
        return "<br>"
    if unicodedata.category(one) in ("Cc", "Cs") and one != "\t":
        return "\ufffd"
    return f"&#{ord(one)};"
