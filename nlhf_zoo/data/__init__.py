"""Data modules, and the readers and generators that they are made of."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nlhf_zoo.data.pairs import PreferencePairs as PreferencePairs
    from nlhf_zoo.data.prompts import TablePrompts as TablePrompts
    from nlhf_zoo.data.text_prompts import TextPrompts as TextPrompts

# Imported when they are asked for: readers of files need no lightning.
_PUBLIC = {"PreferencePairs": "pairs", "TablePrompts": "prompts", "TextPrompts": "text_prompts"}

__all__ = ["PreferencePairs", "TablePrompts", "TextPrompts"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
