"""Rows of text: prompts, pairs, listed responses."""

from nlhf_zoo.data.texts.conversations import ListedRows, conversation_key, message, read_listed
from nlhf_zoo.data.texts.drawn import DrawnResponses, read_drawn
from nlhf_zoo.data.texts.pair_rows import Columns, PairRow
from nlhf_zoo.data.texts.row_source import RowSource

__all__ = [
    "Columns",
    "DrawnResponses",
    "ListedRows",
    "PairRow",
    "RowSource",
    "conversation_key",
    "message",
    "read_drawn",
    "read_listed",
]
