"""The shape of LoRA adapters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)  # no slots: jsonargparse reads the defaults by vars()
class LoRA:
    """Low-rank adapters, arXiv 2106.09685, made by peft.

    Args:
        r: rank.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapters' input; it acts only where the policy asks for dropout.
        target_modules: names of the layers that get an adapter; "all-linear" is every linear layer
            but the output layer.
        rslora: scale by alpha / sqrt(r) instead.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    rslora: bool = False
