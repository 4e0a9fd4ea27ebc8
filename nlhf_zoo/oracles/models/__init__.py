"""Reward and pair models as oracles."""

from nlhf_zoo.oracles.models.general_preference import GeneralPreferenceModelOracle
from nlhf_zoo.oracles.models.generative_pair import GenerativePairModelOracle
from nlhf_zoo.oracles.models.pair import PairModelOracle
from nlhf_zoo.oracles.models.reward import RewardModelOracle

__all__ = [
    "GeneralPreferenceModelOracle",
    "GenerativePairModelOracle",
    "PairModelOracle",
    "RewardModelOracle",
]
