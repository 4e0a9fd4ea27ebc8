"""The entries that there are, in BibTeX: one file, which no network replaces."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("papers.bib")
OWN = "nlhf_zoo"  # the key of this package


@dataclass(frozen=True, slots=True)
class BibEntry:
    """An entry of BibTeX.

    Args:
        key: by which a document cites it.
        text: the entry as it is written.
    """

    key: str
    text: str


@cache
def entries() -> dict[str, BibEntry]:
    """All entries by their arXiv numbers; that of this package by its key."""
    found = {}
    for text in re.findall(r"^@.*?^\}$", FILE.read_text(encoding="utf-8"), re.M | re.S):
        key = text[text.index("{") + 1 : text.index(",")]
        number = re.search(r"^  eprint = \{(.*)\},$", text, re.M)
        found[number[1] if number else key] = BibEntry(key, text)
    return found
