"""Products that round by their shapes, as those of some other machine may.

Kernels differ from processor to processor, and choose their blocks by the shape of what they
multiply, so that equal rows of two batches need not be equal to the last bit. In this mode each
product is off by one unit in the last place or not, by its shapes and the place in the last
dimension: a test that asks for equal bits of two computations fails on any machine.

    NLHF_ROUNDING=1 .venv/bin/pytest -n 2 --dist loadfile
"""

import zlib
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mv",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_attention_math",
}  # fmt: skip


class RoundedByShape(TorchDispatchMode):
    """Moves each product by a unit in the last place, by its shapes."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if function._schema.name in PRODUCTS:
            product = made[0] if isinstance(made, tuple) else made
            if product.is_floating_point() and product.numel():
                shapes = str([[*a.shape] for a in args if isinstance(a, Tensor)])
                places = torch.arange(product.shape[-1], device=product.device)
                pattern = (places * 2654435761 + zlib.crc32(shapes.encode())) >> 7
                sign = (pattern % 3 - 1).to(product.dtype)
                product.mul_(1 + torch.finfo(product.dtype).eps * sign)
        return made
