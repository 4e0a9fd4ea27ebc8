"""Callbacks: they read the game, and change it only through methods that it offers."""

from importlib import import_module

from nlhf_zoo.callbacks.annotator_weights import AnnotatorWeights
from nlhf_zoo.callbacks.budget import Budget
from nlhf_zoo.callbacks.checkpoint import GameCheckpoint, ResumeState
from nlhf_zoo.callbacks.collapse import CollapseWatch
from nlhf_zoo.callbacks.dashboard import Dashboard
from nlhf_zoo.callbacks.exact_metrics import ExactMetrics
from nlhf_zoo.callbacks.exploitability_estimate import ExploitabilityEstimate
from nlhf_zoo.callbacks.game_figures import GameFigures
from nlhf_zoo.callbacks.hang_watch import HangWatch
from nlhf_zoo.callbacks.history import History, read_history
from nlhf_zoo.callbacks.logs import QueryLog, TimeLog
from nlhf_zoo.callbacks.progress import GameProgressBar
from nlhf_zoo.callbacks.response_table import ResponseTable

__all__ = [
    "AnnotatorWeights",
    "Budget",
    "CollapseWatch",
    "Dashboard",
    "ExactMetrics",
    "ExploitabilityEstimate",
    "GameCheckpoint",
    "GameFigures",
    "GameProgressBar",
    "HangWatch",
    "History",
    "QueryLog",
    "ResponseTable",
    "ResumeState",
    "TimeLog",
    "read_history",
]


def __getattr__(name: str) -> object:
    if name in ("HealthCheck", "ReferenceFingerprint"):  # which were here in version 0.1
        return getattr(import_module("nlhf_zoo.health"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
