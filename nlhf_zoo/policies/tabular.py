"""The tabular policy: one logit an action."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.policies.finite import FinitePolicy
from nlhf_zoo.policies.reference import Reference


class TabularPolicy(FinitePolicy):
    """One logit for each action of each prompt; the only policy that can take steps in closed form.

    Args:
        reference: the reference policy mu; uniform if it is not given.
        start: where the policy starts; at the reference if it is not given.
        dtype: float32 or float64.
    """

    def __init__(
        self,
        reference: Reference | None = None,
        start: Reference | None = None,
        dtype: str = "float64",
    ) -> None:
        super().__init__(reference, start, dtype)

    @override
    def make_network(self, log_start: Tensor) -> nn.Module:
        return _LogitTable(log_start)

    def logits(self) -> dict[str, Tensor]:
        """The logits of every player but the reference [C, N]: the tensors, not copies."""
        return {player: next(network.parameters()) for player, network in self.networks.items()}


class _LogitTable(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits[ids]
