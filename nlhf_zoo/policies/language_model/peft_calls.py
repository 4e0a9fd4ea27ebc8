"""What calls of peft leave behind, or say wrongly, and shall not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_false_alarm() -> Iterator[None]:
    """Without peft's warning of ranks that it did use: those of experts in one tensor."""
    with warnings.catch_warnings():
        of = "The following (rank|alpha)_pattern keys did not match"
        warnings.filterwarnings("ignore", of, RuntimeWarning)
        yield


@contextmanager
def without_new_hooks(model: nn.Module) -> Iterator[None]:
    """Take off what an exception leaves: peft's hooks of a call outlive one that fails.

    peft 0.21 removes them after its `yield`, and not in a `finally`; later calls would have the
    rows' adapters of the one that failed.
    """
    before = {module: {*module._forward_pre_hooks} for module in model.modules()}
    try:
        yield
    except BaseException:
        for module, known in before.items():
            for number in {*module._forward_pre_hooks} - known:
                del module._forward_pre_hooks[number]
                module._forward_pre_hooks_with_kwargs.pop(number, None)
        raise
