"""Tensors that are spread over processes, each of which holds a part, as FSDP2 leaves weights.

Such a tensor is a `DTensor`. That is told by its methods, so that nobody without one imports it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether other processes hold parts of a tensor."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory: all of it, unless it is sharded."""
    held: Any = tensor.detach()
    found: Tensor = held.to_local() if is_sharded(held) else held
    return found


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one all processes must ask for it, in the same order."""
    held: Any = tensor.detach()
    found: Tensor = held.full_tensor() if is_sharded(held) else held
    return found


def like(value: Any, other: Tensor) -> Any:
    """A whole tensor sharded as ``other`` is, where that is; anything else as it is.

    Each process cuts its own part out, so that all must have the same one. A number in a tensor,
    as the count of an optimiser's steps, is not sharded.
    """
    is_whole = isinstance(value, Tensor) and value.dim() > 0 and not is_sharded(value)
    if not (is_whole and is_sharded(other)):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = other
    with torch.no_grad():
        return distribute_tensor(
            value.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None
        )
