"""A submission is played again: does what it says hold here?"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nlhf_zoo.cli.bench.methods import Method, made
from nlhf_zoo.cli.bench.results import Figure, read
from nlhf_zoo.cli.trust import refuse_foreign_code
from nlhf_zoo.errors import UserError

_ABSOLUTE = 1e-10  # below it figures are of rounding
_LARGEST = 1e9  # above it lies no exploitability but an infinite one

# Plays a part anew (its name, whether the small setting, methods, seeds, queries): its figures, and
# how far others may differ from them.
Again = Callable[[str, bool, list[Method], list[int], int], tuple[list[Figure], float]]


def check(path: Path, allow_code: bool, again: Again) -> bool:
    """Play what a file of results names, and compare; prints a line for each method.

    Args:
        path: the file of results.
        allow_code: run the submitted algorithm, which is code.
        again: plays a part.

    Returns:
        whether all figures hold.

    Raises:
        UserError: the file is none of results, or names code and ``allow_code`` is not given.
    """
    found = read(path)
    refuse_foreign_code(found["blocks"], path, allow_code)
    for folder in (os.getcwd(), str(path.absolute().parent)):
        if folder not in sys.path:
            sys.path.append(folder)  # for the submitted file, which may lie beside its results
    methods = [made(block, found["rates"][name]) for name, block in found["blocks"].items()]
    if [method.name for method in methods] != [*found["blocks"]]:
        raise UserError(f"--check {path}: its methods are not named as their classes are")
    played = found["part"], found["small"], methods, found["seeds"], found["queries"]
    figures, relative = again(*played)
    lines = [
        _line(method, found["sources"][method.name], found["results"], figures, relative)
        for method in methods
    ]
    print("\n".join(line for line, _ in lines))
    return all(holds for _, holds in lines)


def _line(
    method: Method,
    sources: dict[str, str],
    said: Sequence[Figure],
    here: Sequence[Figure],
    relative: float,
) -> tuple[str, bool]:
    """What is to be said of a method, and whether all its figures hold."""
    before, now = (
        {(f.game, f.seed, f.measure): f.value for f in figures if f.method == method.name}
        for figures in (said, here)
    )
    here_lie = method.sources
    if other := sorted({*here_lie.items()} ^ {*sources.items()}):
        return f"{method.name}: the file of {other[0][0]} is not the one that was measured", False
    if before.keys() != now.keys():
        missing = sorted(now.keys() ^ before.keys())[0]
        return f"{method.name}: results of other games, such as {missing[0]}", False
    wrong = [
        key
        for key, value in now.items()
        # Of a run that has left the numbers both are infinite.
        if not (
            value == before[key]
            or abs(value - before[key]) <= relative * min(abs(value), _LARGEST) + _ABSOLUTE
        )
    ]
    if wrong:
        game, seed, measure = wrong[0]
        return (
            f"{method.name}: {len(wrong)} of {len(now)} do not hold, the first on {game}, seed "
            f"{seed}, {measure}: {before[wrong[0]]:.4g}, and here {now[wrong[0]]:.4g}"
        ), False
    return f"{method.name}: all {len(now)} hold", True
