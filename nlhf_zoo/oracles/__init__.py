"""Who can say which of two responses is better."""

from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.human.oracle import HumanOracle
from nlhf_zoo.oracles.judge.oracle import JudgeOracle
from nlhf_zoo.oracles.judge.pairwise import PairwiseJudge, PairwiseJudgeOracle
from nlhf_zoo.oracles.models.generative_pair import GenerativePairModelOracle
from nlhf_zoo.oracles.models.pair import PairModelOracle
from nlhf_zoo.oracles.models.response import GeneralPreferenceModelOracle, RewardModelOracle
from nlhf_zoo.oracles.rules.reward_functions import RewardFunctionOracle
from nlhf_zoo.oracles.rules.rule_oracle import RuleOracle
from nlhf_zoo.oracles.served.oracle import ServedOracle
from nlhf_zoo.oracles.served.table import ServedTable
from nlhf_zoo.oracles.tables.base import TableOracle
from nlhf_zoo.oracles.tables.from_files import EmbeddingOracle, MatrixOracle, VotesOracle
from nlhf_zoo.oracles.tables.generated import (
    Annotators,
    BradleyTerry,
    Comal,
    Cyclic,
    CyclicBlocks,
    SineGame,
    SmallLanguage,
    UniformRandom,
)
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.oracles.wrappers.bernoulli import BernoulliLabels
from nlhf_zoo.oracles.wrappers.budgeted import BudgetedOracle
from nlhf_zoo.oracles.wrappers.cached import CachedOracle
from nlhf_zoo.oracles.wrappers.ensemble import EnsembleOracle
from nlhf_zoo.oracles.wrappers.fitted import FittedOracle
from nlhf_zoo.oracles.wrappers.listed import ListedResponses
from nlhf_zoo.oracles.wrappers.order_swap import OrderSwap
from nlhf_zoo.oracles.wrappers.transformed import Transformed
from nlhf_zoo.text_models.features import HashedNgrams, TextFeatures

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
    "FittedOracle",
    "GeneralPreferenceModelOracle",
    "GenerativePairModelOracle",
    "HashedNgrams",
    "HumanOracle",
    "JudgeOracle",
    "ListedResponses",
    "MatrixOracle",
    "OrderSwap",
    "PairModelOracle",
    "PairwiseJudge",
    "PairwiseJudgeOracle",
    "PreferenceOracle",
    "Question",
    "RewardFunctionOracle",
    "RewardModelOracle",
    "RuleOracle",
    "ServedOracle",
    "ServedTable",
    "SineGame",
    "SmallLanguage",
    "TableOracle",
    "TextFeatures",
    "TextOracle",
    "Transformed",
    "UniformRandom",
    "VotesOracle",
]
