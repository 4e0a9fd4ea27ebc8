"""Exact metrics of policies on tables, and metrics of preference models.

Thin classes over functions of `nlhf_zoo.solvers`.
"""

from nlhf_zoo.metrics.game import DualityGap, Exploitability, GameMetric, KLToNash, Span, WinRate
from nlhf_zoo.metrics.preference import (
    CalibrationError,
    CyclicTriples,
    FlipRate,
    PreferenceAccuracy,
    PreferenceLogLoss,
    SymmetryError,
)
from nlhf_zoo.metrics.sampled import SampledExploitability
from nlhf_zoo.metrics.validation import SampledMean, SampledWinRate

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
    "SampledExploitability",
    "SampledMean",
    "SampledWinRate",
    "Span",
    "SymmetryError",
    "WinRate",
]
