"""A trained preference model as a folder, from which an oracle is made."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.text_models.loading import ModelSettings, write_settings

NAME = "preference_model"
_ADAPTER = "default"  # as peft calls the only one
_COPY = f".modules_to_save.{_ADAPTER}"


def write_folder(
    place: Path, network: Any, config: Any, tokenizer: Any, settings: ModelSettings
) -> None:
    """Write a classifier, its tokenizer and its settings, in place of an earlier folder.

    All is written beside it first: whoever looks finds a whole model at any time, but for the
    moment between two renamings. A kill there leaves the earlier one as ``<name>.before``.

    The network, with or without adapters, stays as it is; ``config`` is its own as it was loaded,
    for in use its padding changes with each batch.
    """
    beside = place.with_name(f"{place.name}.part")
    before = place.with_name(f"{place.name}.before")
    for left in (beside, before):
        shutil.rmtree(left, ignore_errors=True)
    beside.mkdir(parents=True)
    tokenizer.save_pretrained(beside)
    _save_network(plain_classifier(network), config, beside)
    write_settings(beside, settings)
    if place.exists():
        os.replace(place, before)
    os.replace(beside, place)
    shutil.rmtree(before, ignore_errors=True)


def _save_network(network: Any, config: Any, folder: Path) -> None:
    """Write weights and configuration."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a bar for each checkpoint says nothing
    used, network.config = network.config, copy.deepcopy(config)
    try:
        network.save_pretrained(folder)
    finally:
        network.config = used
        if shown:
            logging.enable_progress_bar()


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
