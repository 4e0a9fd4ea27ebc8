"""Games as tables: files, votes, generators, the small language."""

from nlhf_zoo.data.tables import games, small_language
from nlhf_zoo.data.tables.files import (
    Matrix,
    as_preference,
    read_distribution,
    read_embeddings,
    read_matrix,
    require_memory,
)
from nlhf_zoo.data.tables.votes import Votes, read_votes

__all__ = [
    "Matrix",
    "Votes",
    "as_preference",
    "games",
    "read_distribution",
    "read_embeddings",
    "read_matrix",
    "read_votes",
    "require_memory",
    "small_language",
]
