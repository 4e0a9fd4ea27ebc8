"""Whether tensors hold finite numbers alone: asked before they are trained, saved or resumed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.records.shards import local


@torch.no_grad()
def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with an entry that is no finite number; None without one.

    Smallest and largest entry, which NaN takes over, are found in one pass over the weights, and
    each device is waited for once. What has no floating point, no entries or no data is passed
    over; of what is sharded, this process's part is looked at.
    """
    names: dict[torch.device, list[str]] = {}
    extremes: dict[torch.device, list[Tensor]] = {}
    for name, tensor in ((name, local(one)) for name, one in tensors.items()):
        if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
            continue
        # types of eight bits are for storage, and have no comparison
        comparable = tensor if tensor.element_size() > 1 else tensor.float()
        names.setdefault(tensor.device, []).append(name)
        both = torch.stack(torch.aminmax(comparable.detach())).double()
        extremes.setdefault(tensor.device, []).append(both)
    for device, found in extremes.items():
        finite = torch.stack(found).isfinite().all(-1).tolist()
        if not all(finite):
            return names[device][finite.index(False)]
    return None


def refuse_diverged(weights: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint's weights that are not finite.

    Raises:
        UserError: which weight is not.
    """
    if name := not_finite(weights):
        raise UserError(
            f"the checkpoint is of a run that had diverged, for its {name} is not finite: give an "
            "earlier one, or start afresh with a lower learning rate"
        )
