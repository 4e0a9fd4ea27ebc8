"""The start of a round: the policy and the optimiser's state, to go back to after a half step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.policies.base import Policy


def take(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Copy the policy's parameters and the optimiser's state, by the number of the parameter."""
    state = {
        index: _clone(optimizer.state[parameter])
        for index, parameter in enumerate(_parameters(optimizer))
        if parameter in optimizer.state
    }
    return {"policy": policy.snapshot(), "optimizer": state}


def put_back(snapshot: dict[str, Any], policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Put both back, bit for bit.

    Not the optimiser's param_groups: these hold the learning rate, which the scheduler has moved.
    """
    policy.restore(snapshot["policy"])
    parameters = _parameters(optimizer)
    optimizer.state.clear()
    for index, state in snapshot["optimizer"].items():
        parameter = parameters[index]
        # A checkpoint's lies in main memory; a step count stays there, as torch has it.
        optimizer.state[parameter] = {
            name: v.to(parameter.device) if isinstance(v, Tensor) and v.dim() else v
            for name, v in _clone(state).items()
        }


def _clone(state: dict[str, Any]) -> dict[str, Any]:
    return {name: v.clone() if isinstance(v, Tensor) else v for name, v in state.items()}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
