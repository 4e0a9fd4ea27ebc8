"""A game of people's votes."""

from __future__ import annotations

from pathlib import Path
from typing import final

from nlhf_zoo.data.tables.votes import read_votes
from nlhf_zoo.oracles.tables.base import DTYPES, Precision, TableOracle


@final
class VotesOracle(TableOracle):
    """Preferences from a table of votes, one game a prompt.

    Args:
        votes: path of a CSV with the columns winner, loser and, optionally, prompt, count and tie.
        prior: pseudo-ties added to each pair; with 0, a pair that nobody compared is refused.
        dtype: precision of the answers.
    """

    def __init__(self, votes: str | Path, prior: float = 1.0, dtype: Precision = "float64") -> None:
        read = read_votes(votes, prior)
        preference = read.preference.to(DTYPES[dtype])
        super().__init__(preference, read.support, read.names, read.prompts)
