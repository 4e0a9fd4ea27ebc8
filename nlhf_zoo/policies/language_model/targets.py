"""Which weights of a language model get an adapter, and what part of it they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nlhf_zoo.errors import UserError, cause

# Every linear layer of the language model but the output layer, as peft has it.
ALL_LINEAR = "all-linear"
# These, and the weights of experts that lie in one tensor.
WITH_EXPERTS = "all-linear-and-experts"
# Models whose fused kernels read the weight of a layer past its adapter: peft refuses the layer.
_FUSED_KINDS = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
_FUSED_LAYER = "out_proj"
_ROWS, _TOKENS = 2, 8  # of the text that shows which layers are called


@dataclass(frozen=True, slots=True)
class Linear:
    """The linear weights of a language model, by the names of their layers or parameters.

    Args:
        layers: linear layers that a text is multiplied by, but the output layer.
        idle: those that an adapter cannot act on: no text is passed through them as through a
            linear layer. Vision towers, layers whose weights alone are read, routers that return
            several tensors.
        experts: weights [E, in, out] or [E, out, in] of E experts in one tensor.
    """

    layers: tuple[str, ...]
    idle: tuple[str, ...]
    experts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Targets:
    """What peft's `LoraConfig` is told.

    Args:
        modules: its `target_modules`.
        parameters: its `target_parameters`.
        excluded: its `exclude_modules`, a pattern of whole names.
    """

    modules: str | list[str]
    parameters: list[str] | None
    excluded: str | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """What part of a language model has adapters.

    Args:
        share: of its linear weights, the output layer's left out, those that have one.
        without: kinds of linear weights that have none; `*` stands for any number.
        idle: kinds of layers that an adapter could not act on.
    """

    share: float
    without: tuple[str, ...]
    idle: tuple[str, ...]


@torch.no_grad()
def linear_weights(model: Any) -> Linear:
    """Look which layers a short text passes through.

    A layer counts as called where its like is: another expert of the same layer.

    Args:
        model: a causal language model of transformers, without adapters, in evaluation.

    Raises:
        UserError: the model cannot read a text alone.
    """
    output = model.get_output_embeddings()
    layers = {n: m for n, m in model.named_modules() if _is_linear(m) and m is not output}
    holders = {n: m for n, m in model.named_modules() if _stacked(m)}
    called: set[str] = set()

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            given = next(iter([*args, *kwargs.values()]), None)
            if name in holders or _is_product(module, given, result):
                called.add(_alike(name))

        return hook

    hooks = [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for name, module in (layers | holders).items()
    ]
    try:
        model(input_ids=_text(model), use_cache=False)
    except Exception as error:  # of any architecture's code
        raise UserError(
            f"model.policy.model: {type(model).__name__} cannot read a text alone: {cause(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return Linear(
        tuple(name for name in layers if _alike(name) in called),
        tuple(name for name in layers if _alike(name) not in called),
        tuple(
            f"{name}.{parameter}"
            for name, module in holders.items()
            if _alike(name) in called
            for parameter in _stacked(module)
        ),
    )


def choose(
    model: Any, linear: Linear, wanted: str | list[str], without: Sequence[str] = ()
) -> Targets:
    """What peft is to be told, so that no adapter is where it would not act.

    Args:
        model: the language model.
        linear: its linear weights.
        wanted: `LoRA.target_modules`.
        without: further layers that get no adapter.
    """
    out = {*linear.idle, *without}
    if isinstance(wanted, str) and model.config.model_type in _FUSED_KINDS:
        out |= {name for name in linear.layers if _last(name) == _FUSED_LAYER}
    if wanted != WITH_EXPERTS:
        return Targets(wanted, None, _pattern(out))
    layers = [name for name in linear.layers if name not in out]
    taken = _taken_by_peft(model, {_last(name) for name in layers})
    parameters = [f"{name}.weight" for name in layers if _last(name) in taken]
    modules = [name for name in layers if _last(name) not in taken]
    return Targets(modules, [*parameters, *linear.experts] or None, None)


def coverage(model: nn.Module, linear: Linear) -> Coverage:
    """What part of the linear weights has adapters.

    Args:
        model: the language model with the adapters' layers in it.
        linear: its linear weights, as they were found without adapters.
    """
    from peft.tuners.lora import LoraLayer

    adapted = set()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            adapted.add(f"{plain_name(name)}.{getattr(module, 'parameter_name', 'weight')}")
    sizes = {plain_name(name): parameter.numel() for name, parameter in model.named_parameters()}
    weights = [*(f"{name}.weight" for name in linear.layers), *linear.experts]
    total = sum(sizes.get(name, 0) for name in weights)
    reached = sum(sizes.get(name, 0) for name in weights if name in adapted)
    without = (name.removesuffix(".weight") for name in weights if name not in adapted)
    return Coverage(reached / total if total else 0.0, kinds(without), kinds(linear.idle))


def plain_name(name: str) -> str:
    """The name of a module or parameter in the model without adapters."""
    return name.replace(".base_layer", "")


def kinds(names: Iterable[str]) -> tuple[str, ...]:
    """The names without numbers, each once."""
    return tuple(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names))


def kinds_without_gradient(
    parameters: Iterable[str], gradients: Iterable[Tensor | None]
) -> tuple[str, ...]:
    """Kinds of layers whose adapters no gradient reaches, not those of one expert more or less.

    Args:
        parameters: names of adapters' parameters.
        gradients: theirs; none, or zero alone, is no gradient.
    """
    reached = [
        (layer_of(name), gradient is not None and bool(gradient.any()))
        for name, gradient in zip(parameters, gradients, strict=True)
    ]
    used = kinds(layer for layer, has_gradient in reached if has_gradient)
    return tuple(kind for kind in kinds(layer for layer, _ in reached) if kind not in used)


def layer_of(parameter: str) -> str:
    """The name, in the model without adapters, of the layer that an adapter's parameter is of."""
    return plain_name(parameter.partition(".lora_")[0].removeprefix("base_model.model."))


def written(names: Iterable[str]) -> str:
    """Names to write into `target_modules`, of some layers."""
    return ", ".join(sorted({_last(name) for name in names}))


def _is_linear(module: nn.Module) -> bool:
    """A linear layer of torch, or GPT-2's, whose weight is [in, out]."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _is_product(module: nn.Module, given: Any, result: Any) -> bool:
    """Whether a layer gave one tensor, of the shape that an adapter's product has."""
    if not (isinstance(given, Tensor) and isinstance(result, Tensor)):
        return False
    width = getattr(module, "out_features", None) or getattr(module, "nf", None)
    return result.shape == (*given.shape[:-1], width)


def _stacked(module: nn.Module) -> list[str]:
    """Names of a module's own parameters that hold the matrices of several experts."""
    if "expert" not in type(module).__name__.lower():
        return []
    own = module.named_parameters(recurse=False)
    return [name for name, parameter in own if parameter.ndim == 3 and min(parameter.shape) > 1]


def _text(model: Any) -> Tensor:
    """Tokens [2, 8] that differ; the last half of a vocabulary may have names of images."""
    embeddings = model.get_input_embeddings().weight
    rows = embeddings.shape[0]
    tokens = torch.linspace(rows // 8, rows // 2, _ROWS * _TOKENS).long()
    return tokens.view(_ROWS, _TOKENS).to(embeddings.device)


def _alike(name: str) -> str:
    """The name without numbers behind the first: that of the layer stays, an expert's does not."""
    parts, numbers = [], 0
    for part in name.split("."):
        numbers += part.isdigit()
        parts.append("*" if part.isdigit() and numbers > 1 else part)
    return ".".join(parts)


def _last(name: str) -> str:
    return name.rpartition(".")[-1]


def _pattern(names: Iterable[str]) -> str | None:
    """A pattern of exactly these names; None where there are none."""
    return "|".join(re.escape(name) for name in sorted(names)) or None


def _taken_by_peft(model: Any, names: Iterable[str]) -> set[str]:
    """Names of layers that peft reads as those of experts in earlier versions of transformers.

    In a family of mixtures of experts (Qwen2-MoE's and Mixtral's) peft turns `gate_proj`, say, into
    the experts' `gate_up_proj`, and leaves dense layers and shared experts of that name without an
    adapter. By the name of their weight they are had all the same.
    """
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # before 0.19 it turned none
        return set()
    taken = set()
    for name in names:
        config: Any = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model=model, conversions=None)
        except ValueError:  # it would want the others of the family too
            taken.add(name)
            continue
        if name not in config.target_modules:
            taken.add(name)
    return taken
