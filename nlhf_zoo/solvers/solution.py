"""What a solver returns: a policy, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """An equilibrium and its certificate.

    Args:
        log_policy: log pi* [..., N] in float64, normalised; -inf for actions that it never plays.
        exploitability: e(pi*) [...], computed from ``log_policy`` itself. A figure that uses pi* is
            as good as this one is small; a solver that stopped early shows it here.
        iterations: steps taken, the most over the games of a batch.
    """

    log_policy: Tensor
    exploitability: Tensor
    iterations: int
