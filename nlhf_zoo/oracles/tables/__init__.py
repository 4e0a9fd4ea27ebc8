"""Oracles that answer from a table."""

from nlhf_zoo.oracles.tables.base import TableOracle
from nlhf_zoo.oracles.tables.embedding import EmbeddingOracle
from nlhf_zoo.oracles.tables.generated import (
    Annotators,
    BradleyTerry,
    Comal,
    Cyclic,
    CyclicBlocks,
    SineGame,
    UniformRandom,
)
from nlhf_zoo.oracles.tables.matrix import MatrixOracle
from nlhf_zoo.oracles.tables.small_language import SmallLanguage
from nlhf_zoo.oracles.tables.votes import VotesOracle

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
