"""Checks of the numbers that algorithms take."""

from __future__ import annotations

import math
from typing import TypeVar

_MOST = 1_000_000

_Number = TypeVar("_Number", float, float | None)


def positive(value: _Number, name: str) -> _Number:
    """The value, if it is None or a finite number above 0."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, but it is {value}")
    return value


def not_negative(value: float, name: str) -> float:
    """The value, if it is a finite number of at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, but it is {value}")
    return value


def share(value: _Number, name: str) -> _Number:
    """The value, if it is None or lies in [0, 1]."""
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, but it is {value}")
    return value


def at_least_one(value: int, name: str) -> int:
    """The value, if it is at least 1, and not so large that a round would never end."""
    if not 1 <= value <= _MOST:
        bound = "at least 1" if value < 1 else f"at most {_MOST:,}"
        raise ValueError(f"{name} must be {bound}, but it is {value}")
    return value
