"""The neural policy of the EGPO simulation, arXiv 2503.08942."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.policies.finite import FinitePolicy
from nlhf_zoo.policies.reference import Reference


class MLPPolicy(FinitePolicy):
    """A multilayer perceptron of its own for each prompt or game, whose outputs are logits.

    The input is a constant vector of ones; the output is added to the starting logits, and the
    last layer starts at zero, so that the policy starts exactly at ``start``.

    Args:
        reference: the reference policy mu; uniform if it is not given.
        start: where the policy starts; at the reference if it is not given.
        width: units of a hidden layer.
        layers: linear layers, the last one among them.
        dtype: float32 or float64.
    """

    def __init__(
        self,
        reference: Reference | None = None,
        start: Reference | None = None,
        width: int = 10,
        layers: int = 3,
        dtype: str = "float64",
    ) -> None:
        super().__init__(reference, start, dtype)
        if width < 1 or layers < 1:
            raise ValueError(
                f"width and layers must be at least 1, but they are {width} and {layers}"
            )
        self.width = width
        self.layers = layers

    @override
    def make_network(self, log_start: Tensor) -> nn.Module:
        return _BatchedMLP(log_start, self.width, self.layers)


class _BatchedMLP(nn.Module):
    offset: Tensor

    def __init__(self, log_start: Tensor, width: int, layers: int) -> None:
        super().__init__()
        num_prompts, num_actions = log_start.shape
        self.width = width
        sizes = [width] * layers + [num_actions]
        bound = width**-0.5  # as torch.nn.Linear starts
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            scale = 0.0 if layer == layers - 1 else bound
            for parameters, rows in ((self.weights, inputs), (self.biases, 1)):
                start = torch.empty(num_prompts, rows, outputs, dtype=log_start.dtype)
                parameters.append(nn.Parameter(start.uniform_(-scale, scale)))
        self.register_buffer("offset", log_start.clone())

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.ones(len(ids), 1, self.width, dtype=self.offset.dtype, device=ids.device)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias[ids], hidden if layer == 0 else hidden.relu(), weight[ids])
        return self.offset[ids] + hidden[:, 0]
