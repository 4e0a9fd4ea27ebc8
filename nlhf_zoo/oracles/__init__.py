"""Who can say which of two responses is better."""

from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.bernoulli import BernoulliLabels
from nlhf_zoo.oracles.embedding import EmbeddingOracle
from nlhf_zoo.oracles.generated import (
    Annotators,
    BradleyTerry,
    Comal,
    Cyclic,
    CyclicBlocks,
    SineGame,
    UniformRandom,
)
from nlhf_zoo.oracles.matrix import MatrixOracle
from nlhf_zoo.oracles.reward_model import RewardModelOracle
from nlhf_zoo.oracles.rule import RuleOracle
from nlhf_zoo.oracles.small_language import SmallLanguage
from nlhf_zoo.oracles.table import TableOracle
from nlhf_zoo.oracles.votes import VotesOracle

__all__ = [
    "Annotators",
    "BernoulliLabels",
    "BradleyTerry",
    "Comal",
    "Cyclic",
    "CyclicBlocks",
    "EmbeddingOracle",
    "MatrixOracle",
    "PreferenceOracle",
    "RewardModelOracle",
    "RuleOracle",
    "SineGame",
    "SmallLanguage",
    "TableOracle",
    "UniformRandom",
    "VotesOracle",
]
