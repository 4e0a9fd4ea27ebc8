"""Who can say which of two responses is better."""

from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.judge import JudgeOracle
from nlhf_zoo.oracles.models import (
    GeneralPreferenceModelOracle,
    GenerativePairModelOracle,
    PairModelOracle,
    RewardModelOracle,
)
from nlhf_zoo.oracles.rules.rule import RuleOracle
from nlhf_zoo.oracles.tables import (
    Annotators,
    BradleyTerry,
    Comal,
    Cyclic,
    CyclicBlocks,
    EmbeddingOracle,
    MatrixOracle,
    SineGame,
    SmallLanguage,
    TableOracle,
    UniformRandom,
    VotesOracle,
)
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.oracles.wrappers import (
    BernoulliLabels,
    BudgetedOracle,
    CachedOracle,
    EnsembleOracle,
    ListedResponses,
    OrderSwap,
)

__all__ = [
    "Annotators",
    "Answer",
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
    "Question",
    "RewardModelOracle",
    "RuleOracle",
    "SineGame",
    "SmallLanguage",
    "TableOracle",
    "TextOracle",
    "UniformRandom",
    "VotesOracle",
]
