"""Exact metrics of policies on tables, and metrics of preference models.

Thin classes over functions of `nlhf_zoo.solvers`.
"""

from nlhf_zoo.metrics.base import GameMetric
from nlhf_zoo.metrics.distance import KLToNash, Span
from nlhf_zoo.metrics.exploitability import DualityGap, Exploitability
from nlhf_zoo.metrics.preference import (
    CalibrationError,
    CyclicTriples,
    FlipRate,
    PreferenceAccuracy,
    PreferenceLogLoss,
    SymmetryError,
)
from nlhf_zoo.metrics.win_rate import WinRate

__all__ = [
    "CalibrationError",
    "CyclicTriples",
    "DualityGap",
    "Exploitability",
    "FlipRate",
    "GameMetric",
    "KLToNash",
    "PreferenceAccuracy",
    "PreferenceLogLoss",
    "Span",
    "SymmetryError",
    "WinRate",
]
