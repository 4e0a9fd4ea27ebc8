"""Oracles that answer from a table."""

from nlhf_zoo.oracles.tables.base import TableOracle
from nlhf_zoo.oracles.tables.embedding import EmbeddingOracle
from nlhf_zoo.oracles.tables.from_files import MatrixOracle, VotesOracle
from nlhf_zoo.oracles.tables.generated import (
    Annotators,
    BradleyTerry,
    Comal,
    Cyclic,
    CyclicBlocks,
    SineGame,
    UniformRandom,
)
from nlhf_zoo.oracles.tables.small_language import SmallLanguage

__all__ = [
    "Annotators",
    "BradleyTerry",
    "Comal",
    "Cyclic",
    "CyclicBlocks",
    "EmbeddingOracle",
    "MatrixOracle",
    "SineGame",
    "SmallLanguage",
    "TableOracle",
    "UniformRandom",
    "VotesOracle",
]
