"""Who can say which of two responses is better."""

from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.bernoulli import BernoulliLabels
from nlhf_zoo.oracles.budgeted import BudgetedOracle
from nlhf_zoo.oracles.cached import CachedOracle
from nlhf_zoo.oracles.embedding import EmbeddingOracle
from nlhf_zoo.oracles.ensemble import EnsembleOracle
from nlhf_zoo.oracles.general_preference import GeneralPreferenceModelOracle
from nlhf_zoo.oracles.generated import (
    Annotators,
    BradleyTerry,
    Comal,
    Cyclic,
    CyclicBlocks,
    SineGame,
    UniformRandom,
)
from nlhf_zoo.oracles.generative_pair_model import GenerativePairModelOracle
from nlhf_zoo.oracles.judge import JudgeOracle
from nlhf_zoo.oracles.listed import ListedResponses
from nlhf_zoo.oracles.matrix import MatrixOracle
from nlhf_zoo.oracles.order_swap import OrderSwap
from nlhf_zoo.oracles.pair_model import PairModelOracle
from nlhf_zoo.oracles.reward_model import RewardModelOracle
from nlhf_zoo.oracles.rule import RuleOracle
from nlhf_zoo.oracles.small_language import SmallLanguage
from nlhf_zoo.oracles.table import TableOracle
from nlhf_zoo.oracles.votes import VotesOracle

__all__ = [
    "Annotators",
    "BernoulliLabels",
    "BradleyTerry",
    "BudgetedOracle",
    "CachedOracle",
    "Comal",
    "Cyclic",
    "CyclicBlocks",
    "EmbeddingOracle",
    "EnsembleOracle",
    "GeneralPreferenceModelOracle",
    "GenerativePairModelOracle",
    "JudgeOracle",
    "ListedResponses",
    "MatrixOracle",
    "OrderSwap",
    "PairModelOracle",
    "PreferenceOracle",
    "RewardModelOracle",
    "RuleOracle",
    "SineGame",
    "SmallLanguage",
    "TableOracle",
    "UniformRandom",
    "VotesOracle",
]
