"""How often policies win."""

from __future__ import annotations

from torch import Tensor

from nlhf_zoo.metrics.base import GameMetric
from nlhf_zoo.solvers import win_rate


class WinRate(GameMetric):
    """P(pi > pi'), the win rate against an opponent; see `nlhf_zoo.solvers.win_rate`."""

    higher_is_better = True

    def update(self, log_policy: Tensor, log_opponent: Tensor, preference: Tensor) -> None:
        """Take in B games.

        Args:
            log_policy: log pi [B, N].
            log_opponent: log pi' [B, N].
            preference: P [B, N, N], or one for all [N, N].
        """
        self.add(win_rate(preference, log_policy, log_opponent))
