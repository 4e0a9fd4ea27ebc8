"""LoRA adapters on a sequence classifier, and the plain classifier that they amount to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError, cause
from nlhf_zoo.policies.language_model.players import LoRA

_ADAPTER = "default"  # as peft calls the only one
_COPY = f".modules_to_save.{_ADAPTER}"


def with_adapters(network: Any, lora: LoRA, where: str) -> Any:
    """Freeze a classifier, all but its output layer, and put adapters on it that fit.

    What trains is float32, whatever the classifier is. What is returned is a model of peft around
    the classifier, which has become another.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = lora.target_modules
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # it takes fractions, too
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=lora.rslora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in network.modules()),
        task_type="SEQ_CLS",  # so that the output layer trains, without an adapter
    )
    try:
        adapted: Any = get_peft_model(network, config)
    except (ValueError, TypeError) as error:
        if "target" in str(error):
            raise UserError(
                f"model.lora.target_modules {targets!r} names no layer of {where} that can have an "
                "adapter"
            ) from error
        raise UserError(f"model.lora does not fit {where}: {cause(error)}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def plain_classifier(network: Any) -> Any:
    """The classifier without adapters that gives the same outputs, up to rounding.

    A model of peft stays as it is: where adapters are merged, tensors are new ones. A plain
    classifier is returned.
    """
    from peft import PeftModel

    if not isinstance(network, PeftModel):
        return network
    adapted: Any = network.get_base_model()
    with torch.device("meta"):
        plain: Any = type(adapted)(adapted.config)
    plain.load_state_dict(_merged(adapted), strict=True, assign=True)
    return plain


@torch.no_grad()
def _merged(adapted: Any) -> dict[str, Tensor]:
    """The plain classifier's weights: W + B A, and the trained copy of the output layer."""
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)
    }
    delta = {
        f"{name}.base_layer.weight": layer.get_delta_weight(_ADAPTER)
        for name, layer in layers.items()
    }
    weights = {}
    for name, tensor in adapted.state_dict().items():
        if ".lora_" in name or ".original_module." in name:
            continue
        if name in delta:
            tensor = (tensor + delta[name]).to(tensor.dtype)
        weights[name.replace(".base_layer.", ".").replace(f"{_COPY}.", ".")] = tensor
    return weights
