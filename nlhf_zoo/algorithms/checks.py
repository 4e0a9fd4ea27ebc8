"""Checks of the numbers that algorithms take."""

from __future__ import annotations

import math
from typing import overload


@overload
def positive(value: float, name: str) -> float: ...
@overload
def positive(value: float | None, name: str) -> float | None: ...
def positive(value: float | None, name: str) -> float | None:
    """The value, if it is None or a finite number above 0.

    Raises:
        ValueError: it is neither.
    """
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, but it is {value}")
    return value


@overload
def share(value: float, name: str) -> float: ...
@overload
def share(value: float | None, name: str) -> float | None: ...
def share(value: float | None, name: str) -> float | None:
    """The value, if it is None or lies in [0, 1].

    Raises:
        ValueError: it does neither.
    """
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, but it is {value}")
    return value


def at_least_one(value: int, name: str) -> int:
    """The value, if it is a whole number of at least 1.

    Raises:
        ValueError: it is not.
    """
    if value < 1:
        raise ValueError(f"{name} must be at least 1, but it is {value}")
    return value
