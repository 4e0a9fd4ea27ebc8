"""Exact answers on tables: pure float64 torch functions, batched over games."""

from nlhf_zoo.solvers.annotators import WorstCase, worst_case
from nlhf_zoo.solvers.game import (
    PreparedGame,
    antisymmetric,
    best_response,
    duality_gap,
    exploitability,
    kl,
    kl_to_nash,
    prepare_game,
    span,
    trajectory_metrics,
    win_rate,
    win_rates,
)
from nlhf_zoo.solvers.intervals import score_interval
from nlhf_zoo.solvers.nash import (
    Solution,
    equilibrium_intervals,
    regularised_nash,
    solve,
    unregularised_nash,
)
from nlhf_zoo.solvers.payoffs import BoundedPayoff, bounded_payoff
from nlhf_zoo.solvers.sampled import (
    LEAST_EFFECTIVE,
    ExploitabilityEstimates,
    exponential_of_mean,
    least_opponents,
    sampled_exploitability,
)
from nlhf_zoo.solvers.validation import check_beta, check_preference, check_reference

__all__ = [
    "LEAST_EFFECTIVE",
    "BoundedPayoff",
    "ExploitabilityEstimates",
    "PreparedGame",
    "Solution",
    "WorstCase",
    "antisymmetric",
    "best_response",
    "bounded_payoff",
    "check_beta",
    "check_preference",
    "check_reference",
    "duality_gap",
    "equilibrium_intervals",
    "exploitability",
    "exponential_of_mean",
    "kl",
    "kl_to_nash",
    "least_opponents",
    "prepare_game",
    "regularised_nash",
    "sampled_exploitability",
    "score_interval",
    "solve",
    "span",
    "trajectory_metrics",
    "unregularised_nash",
    "win_rate",
    "win_rates",
    "worst_case",
]
