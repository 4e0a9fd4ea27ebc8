"""How far policies are from a computed equilibrium; report its own exploitability beside them."""

from __future__ import annotations

from torch import Tensor

from nlhf_zoo.metrics.base import GameMetric
from nlhf_zoo.solvers import kl_to_nash, span


class KLToNash(GameMetric):
    """KL(pi* || pi); see `nlhf_zoo.solvers.kl_to_nash`."""

    higher_is_better = False

    def update(self, log_policy: Tensor, log_nash: Tensor) -> None:
        """Take in B games.

        Args:
            log_policy: log pi [B, N].
            log_nash: log pi* [B, N].
        """
        self.add(kl_to_nash(log_nash, log_policy))


class Span(GameMetric):
    """max_y d(y) - min_y d(y) of d = log pi - log pi*; see `nlhf_zoo.solvers.span`."""

    higher_is_better = False

    def update(self, log_policy: Tensor, log_nash: Tensor) -> None:
        """Take in B games.

        Args:
            log_policy: log pi [B, N].
            log_nash: log pi* [B, N].
        """
        self.add(span(log_policy, log_nash))
