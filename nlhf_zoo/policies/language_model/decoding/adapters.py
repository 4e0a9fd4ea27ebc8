"""LoRA adapters as the decoder applies them: two products a layer or none, several players."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nlhf_zoo.policies.language_model.players import AdapterPlayers, Players

_MOST = 2**28  # numbers in the layers' weights that are copied for a rollout: a GiB


class FusedAdapters:
    """The adapters of all players, applied without peft's way around them.

    y = W x + s B A x, where A and s B of each layer lie transposed, in the type of what comes in.
    peft's layers keep their state and their hooks: each gets another `forward` for the time of a
    rollout, and loses it afterwards. A call holds the rows of one player, or of several, one
    player's after the other's and equally many.

    A few rows are multiplied faster by a weight that lies transposed, and faster still where one
    player's adapter is in it: W + s B A, in float32 on a CPU alone. In bfloat16 the sum would be
    rounded to 8 digits, and the law be another.

    Args:
        players: adapters on one base model.
        transposed: copy the weights for this, where they are small enough.
    """

    def __init__(self, players: AdapterPlayers, transposed: bool) -> None:
        self.players = players
        self.layers: list[Any] = [*players.lora_layers]
        numbers = sum(layer.get_base_layer().weight.numel() for layer in self.layers)
        self.transposed = transposed and numbers <= _MOST
        self._names: tuple[str | None, ...] = ()
        self._low_rank: dict[tuple[int, str, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._weights: dict[tuple[int, str | None], Tensor] = {}

    @staticmethod
    def fit(players: Players) -> bool:
        """Whether all adapters are of the plain kind: of linear layers, without a bias."""
        return isinstance(players, AdapterPlayers) and all(map(_is_plain, players.lora_layers))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the layers apply their adapters in this way inside."""
        for number, layer in enumerate(self.layers):
            layer.forward = self._forward(number, layer)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def play(self, names: Sequence[str]) -> None:
        """Let calls hold rows of these players."""
        self._names = tuple(None if self.players.is_base(name) else name for name in names)

    def refresh(self) -> None:
        """Take the weights that the players have now, in the tensors that there are."""
        for (number, name, _), (a, b) in self._low_rank.items():
            layer = self.layers[number]
            a.copy_(layer.lora_A[name].weight.T)
            b.copy_(layer.scaling[name] * layer.lora_B[name].weight.T)

    def _parts(self, number: int, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A^T [in, r] and s B^T [r, out] of a layer."""
        key = number, name, dtype
        if key not in self._low_rank:
            layer = self.layers[number]
            a = layer.lora_A[name].weight.detach().T.to(dtype, copy=True)
            b = layer.scaling[name] * layer.lora_B[name].weight.detach().T
            self._low_rank[key] = a.contiguous(), b.to(dtype).contiguous()
        return self._low_rank[key]

    def _weight(self, number: int, name: str | None) -> Tensor:
        """W^T [in, out] of a layer, with a player's adapter in it."""
        if (number, name) not in self._weights:
            layer = self.layers[number]
            weight: Tensor = layer.base_layer.weight.detach().T.clone(
                memory_format=torch.contiguous_format
            )
            if name is not None and name in layer.lora_A:
                weight.addmm_(*self._parts(number, name, weight.dtype))
            self._weights[number, name] = weight
        return self._weights[number, name]

    def _forward(self, number: int, layer: Any) -> Callable[..., Tensor]:
        """What a layer does meanwhile."""
        base = layer.base_layer
        direct = self.transposed and _is_direct(base)

        def forward(x: Tensor, *args: Any, **options: Any) -> Tensor:
            names = self._names
            one = names[0] if len(names) == 1 else None
            if not direct:
                result: Tensor = base(x, *args, **options)
            elif base.bias is None:
                result = x @ self._weight(number, one)
            else:
                result = x @ self._weight(number, one) + base.bias
            if not (direct and len(names) == 1):
                self._add(number, x, result)
            return result

        return forward

    def _add(self, number: int, x: Tensor, result: Tensor) -> None:
        """Add s B A x of each player's rows in place."""
        layer, names = self.layers[number], self._names
        into = result.view(len(names), -1, result.shape[-1])
        rows = x.reshape(len(names), -1, x.shape[-1])
        for place, name in enumerate(names):
            if name is None or name not in layer.lora_A:
                continue
            part, inputs = into[place], rows[place]
            a, b = self._parts(number, name, inputs.dtype)
            low = inputs @ a
            if low.dtype == part.dtype == b.dtype:
                part.addmm_(low, b)
            else:  # autocast has chosen another type
                part.add_((low @ b).to(part.dtype))


def _is_plain(layer: Any) -> bool:
    """Whether all that a layer of peft does is to add B A x."""
    from peft.tuners.lora.layer import Linear

    plain = type(layer) is Linear and not layer.lora_variant and "forward" not in vars(layer)
    return plain and all(type(b) is nn.Linear and b.bias is None for b in layer.lora_B.values())


def _is_direct(base: nn.Module) -> bool:
    """Whether a layer is its product and nothing else."""
    hooks = base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base)
    if type(base) is not nn.Linear or hooks or torch.is_autocast_enabled("cpu"):
        return False
    return base.weight.device.type == "cpu" and base.weight.dtype == torch.float32
