"""Oracles around other oracles."""

from nlhf_zoo.oracles.wrappers.bernoulli import BernoulliLabels
from nlhf_zoo.oracles.wrappers.budgeted import BudgetedOracle
from nlhf_zoo.oracles.wrappers.cached import CachedOracle
from nlhf_zoo.oracles.wrappers.ensemble import EnsembleOracle
from nlhf_zoo.oracles.wrappers.listed import ListedResponses
from nlhf_zoo.oracles.wrappers.order_swap import OrderSwap

__all__ = [
    "BernoulliLabels",
    "BudgetedOracle",
    "CachedOracle",
    "EnsembleOracle",
    "ListedResponses",
    "OrderSwap",
]
