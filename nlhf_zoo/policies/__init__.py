"""Policies and the distributions that they start from."""

from nlhf_zoo.policies.base import Policy
from nlhf_zoo.policies.mlp import MLPPolicy
from nlhf_zoo.policies.reference import (
    FileReference,
    GivenReference,
    NormalReference,
    Reference,
    UniformReference,
)
from nlhf_zoo.policies.tabular import TabularPolicy

__all__ = [
    "FileReference",
    "GivenReference",
    "MLPPolicy",
    "NormalReference",
    "Policy",
    "Reference",
    "TabularPolicy",
    "UniformReference",
]
