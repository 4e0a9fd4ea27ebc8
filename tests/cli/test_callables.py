"""A function says what it returns; what its arguments are need not be known when it is called."""

import sys
import typing
from collections.abc import Callable

import pytest
from torch import Tensor

from nlhf_zoo.cli.callables import refuse_callable
from nlhf_zoo.errors import UserError

FUNCTIONS = """
from __future__ import annotations
from functools import wraps
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def square(margin: Tensor, beta: float) -> torch.Tensor:
    return margin**2


@wraps(square)
def wrapped(*args):
    return square(*args)


class Square:
    def __call__(self, margin: Tensor) -> torch.Tensor:
        return margin**2


def unresolved(margin: torch.Tensor) -> Tensor:
    return margin**2


def other(margin: Tensor) -> str:
    return ""
"""
TENSOR = Callable[[Tensor], Tensor]


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "functions_of_tests.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "functions_of_tests", raising=False)
    import functions_of_tests

    yield functions_of_tests
    del sys.modules["functions_of_tests"]


def test_the_annotations_of_arguments_need_not_be_resolved(functions):
    refuse_callable("a", TENSOR, functions.square)
    refuse_callable("a", TENSOR, functions.wrapped)
    refuse_callable("a", TENSOR, {"class_path": "functions_of_tests.Square"})
    with pytest.raises(UserError, match=r"a: functions_of_tests\.other must be .* return Tensor"):
        refuse_callable("a", TENSOR, functions.other)


def test_a_return_annotation_that_cannot_be_resolved_is_named(functions):
    said = r"a: the return annotation of functions_of_tests\.unresolved cannot be resolved \(name"
    with pytest.raises(UserError, match=said):
        refuse_callable("a", TENSOR, functions.unresolved)
    refuse_callable("a", Callable[[Tensor], float], functions.unresolved)


def test_a_bare_callable_is_any():
    """Lightning's `DDPStrategy` has such options: it could be given by its path in no file."""
    refuse_callable("a", typing.Callable | None, print)
    refuse_callable("a", typing.Callable | None, None)
