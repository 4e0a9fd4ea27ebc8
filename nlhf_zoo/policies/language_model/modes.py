"""Dropout and gradient checkpointing of a transformers model: which mode computes what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from nlhf_zoo.errors import UserError


def switch_dropout_off(model: nn.Module) -> list[tuple[nn.Module, str, float]]:
    """Set dropout layers, and the numbers that models hand to the functional form, to 0.

    Returns:
        what was changed: module, attribute and value.
    """
    changed = []
    for module in model.modules():
        for name, value in vars(module).items():
            is_layer = isinstance(module, nn.Dropout) and name == "p"
            is_dropout = is_layer or "dropout" in name or name == "layerdrop"
            if is_dropout and isinstance(value, float) and value:
                changed.append((module, name, value))
    for module, name, _ in changed:
        setattr(module, name, 0.0)
    return changed


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Without dropout inside, and as before afterwards."""
    changed = switch_dropout_off(model)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


def checkpoint_activations(model: Any) -> None:
    """Compute activations again in the backward, in the mode that they were computed in.

    By the name that transformers has for it since 5.23, or by the one before.

    Raises:
        UserError: the architecture cannot.
    """
    enable = getattr(model, "activation_checkpointing_enable", None)
    options = {"use_reentrant": False, "context_fn": _in_training(model)}
    try:
        (enable or model.gradient_checkpointing_enable)(options)
    except ValueError as error:
        raise UserError(f"{error} Set model.policy.gradient_checkpointing to false") from error


def _in_training(model: nn.Module) -> Callable[[], tuple[AbstractContextManager[None], ...]]:
    """Contexts of a forward and of its repetition; what is not played, is trained.

    The model is in training mode for the trained log-probability only, and would be in evaluation
    again when the backward repeats it: layers that look at their mode would compute something else.
    """

    @contextmanager
    def again() -> Iterator[None]:
        switched = [module for module in model.modules() if not module.training]
        for module in switched:
            module.training = True
        try:
            yield
        finally:
            for module in switched:
                module.training = False

    return lambda: (nullcontext(), again())
