"""Exact metrics of policies on tables: thin classes over functions of `nlhf_zoo.solvers`."""

from nlhf_zoo.metrics.base import GameMetric
from nlhf_zoo.metrics.distance import KLToNash, Span
from nlhf_zoo.metrics.exploitability import DualityGap, Exploitability
from nlhf_zoo.metrics.win_rate import WinRate

__all__ = ["DualityGap", "Exploitability", "GameMetric", "KLToNash", "Span", "WinRate"]
