"""The checks of a game's health: what must never go wrong silently, on the user's own parts."""

from nlhf_zoo.health.check import Check, Finding, Note
from nlhf_zoo.health.preservation import kept_tensors, restored_after, scatter
from nlhf_zoo.health.probe import Probe, drawn, gap, random_tokens, total_log_prob
from nlhf_zoo.health.reference_fingerprint import ReferenceFingerprint
from nlhf_zoo.health.suite import HealthCheck, refuse_unhealthy, run_checks
from nlhf_zoo.policies.language_model.capabilities import rounding

__all__ = [
    "Check",
    "Finding",
    "HealthCheck",
    "Note",
    "Probe",
    "ReferenceFingerprint",
    "drawn",
    "gap",
    "kept_tensors",
    "random_tokens",
    "refuse_unhealthy",
    "restored_after",
    "rounding",
    "run_checks",
    "scatter",
    "total_log_prob",
]
