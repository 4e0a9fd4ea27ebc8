"""Losses: pure functions of tensors."""

from nlhf_zoo.losses.logistic import logistic, pair_weight
from nlhf_zoo.losses.policy_gradient import (
    clipped_policy_gradient,
    deviations,
    policy_gradient,
    standardised,
)
from nlhf_zoo.losses.regression import pair_regression, pointwise_regression

__all__ = [
    "clipped_policy_gradient",
    "deviations",
    "logistic",
    "pair_regression",
    "pair_weight",
    "pointwise_regression",
    "policy_gradient",
    "standardised",
]
