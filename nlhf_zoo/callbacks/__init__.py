"""Callbacks: they read the game, and change it only through methods that it offers."""

from nlhf_zoo.callbacks.budget import Budget
from nlhf_zoo.callbacks.checkpoint import GameCheckpoint
from nlhf_zoo.callbacks.exact_metrics import ExactMetrics
from nlhf_zoo.callbacks.history import History, read_history
from nlhf_zoo.callbacks.progress import GameProgressBar
from nlhf_zoo.callbacks.query_log import QueryLog
from nlhf_zoo.callbacks.resume_state import ResumeState
from nlhf_zoo.callbacks.time_log import TimeLog

__all__ = [
    "Budget",
    "ExactMetrics",
    "GameCheckpoint",
    "GameProgressBar",
    "History",
    "QueryLog",
    "ResumeState",
    "TimeLog",
    "read_history",
]
