"""Cases of which some are tests by default, and the others slow ones."""

import itertools
from collections.abc import Callable, Iterable, Mapping
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


def half_of(names: str, first: Mapping[str, Any], *others: Mapping[str, Any]) -> Any:
    """Parametrise a test by all cases of several arguments, of which half are slow.

    Every value is in a case by default; of three arguments and more, if all but the first have two
    values, any two of different arguments meet in one.

    Args:
        names: of the arguments.
        first: its values by their names.
        others: likewise.
    """
    cases = itertools.product(*([*enumerate(each.items())] for each in (first, *others)))
    return pytest.mark.parametrize(
        names,
        [
            pytest.param(
                *(value for _, (_, value) in case),
                id="-".join(name for _, (name, _) in case),
                marks=[pytest.mark.slow] * (sum(number for number, _ in case) % 2),
            )
            for case in cases
        ],
    )
