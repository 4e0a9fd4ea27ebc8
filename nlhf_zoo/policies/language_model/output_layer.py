"""Logits from hidden states, as a language model makes them of its output layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# Numbers in configurations of transformers, by the name that an architecture has for them.
_MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_MULTIPLIES_ALL = "hyperclovax"  # by what others divide by


def output_layer(model: Any) -> Callable[[Tensor], Tensor]:
    """Logits [..., V] in float32 from hidden states [..., H]: c tanh(s W h / c).

    The scale s and the soft cap c are those of the configuration of the text model; most
    architectures have neither. Whether a model has them by other names is for the caller to see.

    Args:
        model: a causal language model of transformers.
    """
    layer: nn.Linear = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale, cap = _scale(config), _first(config, _SOFT_CAPS)

    def logits(hidden: Tensor) -> Tensor:
        found: Tensor = layer(hidden.to(layer.weight.dtype)).float()
        if scale != 1:
            found = found * scale
        return found if cap is None else cap * torch.tanh(found / cap)

    return logits


def _scale(config: Any) -> float:
    scale = 1.0
    for name in _MULTIPLIERS:
        scale *= _number(config, name) or 1.0
    for name in _DIVISORS:
        number = _number(config, name) or 1.0
        scale *= number if config.model_type.startswith(_MULTIPLIES_ALL) else 1 / number
    return scale


def _first(config: Any, names: tuple[str, ...]) -> float | None:
    return next((found for name in names if (found := _number(config, name))), None)


def _number(config: Any, name: str) -> float | None:
    found = getattr(config, name, None)
    return float(found) if isinstance(found, int | float) else None
