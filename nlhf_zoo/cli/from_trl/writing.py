"""A configuration as a file with comments, and what became of each argument, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nlhf_zoo.cli.from_trl.sheet import Line, Noted
from nlhf_zoo.cli.yaml_rules import dump

_KINDS = ("kept", "translated", "differs", "left out", "by hand")
_WIDTH = 110


def report(lines: list[Line]) -> str:
    """What became of each argument, by kind."""
    ordered = sorted(lines, key=lambda line: _KINDS.index(line.kind))
    return "\n".join(f"{line.kind:<11}{line.theirs} -> {line.ours}" for line in ordered)


def configuration(blocks: Mapping[str, Any], head: list[str]) -> str:
    """The file's text: comments of its own, and the blocks."""
    comments = [line for text in head for line in _wrapped(text)]
    return "\n".join([*comments, *_block(blocks, "")]) + "\n"


def _wrapped(text: str) -> Iterator[str]:
    """A comment of several lines."""
    line = "#"
    for word in text.split():
        if len(line) + len(word) >= _WIDTH:
            yield line
            line = "#  "
        line += f" {word}"
    yield line


def _block(block: Mapping[str, Any], pad: str) -> Iterator[str]:
    """The lines of a mapping."""
    for key, given in block.items():
        value, comment = (given.value, given.comment) if isinstance(given, Noted) else (given, "")
        behind = f"  # {comment}" if comment else ""
        if isinstance(value, Mapping) and value:
            yield f"{pad}{key}:{behind}"
            yield from _block(value, f"{pad}  ")
        elif isinstance(value, list) and value:
            yield f"{pad}{key}:{behind}"
            for entry in value:
                yield from _entry(entry, f"{pad}  ")
        else:
            yield f"{pad}{dump({key: value}).strip()}{behind}"


def _entry(entry: object, pad: str) -> Iterator[str]:
    """The lines of an entry of a list."""
    if not isinstance(entry, Mapping):
        yield f"{pad}{dump([entry]).strip()}"
        return
    for number, line in enumerate(_block(entry, f"{pad}  ")):
        yield line if number else f"{pad}- {line.strip()}"
