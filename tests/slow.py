"""Cases of which some are tests by default, and the others slow ones."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_unless(
    name: str,
    by_default: Callable[[Any], bool],
    cases: Iterable[Any],
    ids: Callable[[Any], str] | None = None,
) -> Any:
    """Parametrise a test by all cases, of which those that are not ``by_default`` are slow."""
    marked = [
        pytest.param(case, marks=[] if by_default(case) else [pytest.mark.slow]) for case in cases
    ]
    return pytest.mark.parametrize(name, marked, ids=ids)
