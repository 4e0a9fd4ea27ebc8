"""A submission is played again: does what it says hold here?"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlhf_zoo.cli.bench.methods import Method, made
from nlhf_zoo.cli.bench.results import Figure, read
from nlhf_zoo.cli.trust import refuse_foreign_code
from nlhf_zoo.errors import UserError

_ABSOLUTE = 1e-10  # below it figures are of rounding
_LARGEST = 1e9  # above it lies no exploitability but an infinite one


@dataclass(frozen=True, slots=True)
class Here:
    """What a part is here.

    Args:
        figures: of all methods.
        relative: how far others may differ from them.
        wrong: what is wrong with what the submission keeps, a sentence each.
        said: what is to be said of how it was checked, if anything.
    """

    figures: list[Figure]
    relative: float
    wrong: Sequence[str] = ()
    said: str = ""


# Plays a part anew, or computes it from what was kept: a submission, its methods, its folder.
Again = Callable[[Mapping[str, Any], list[Method], Path], Here]


def check(path: Path, allow_code: bool, again: Again) -> bool:
    """Play what a file of results names, and compare; prints a line for each method.

    Args:
        path: the file of results.
        allow_code: run the submitted algorithm, which is code.
        again: plays a part, or computes it from what was kept.

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
    here = again(found, methods, path.absolute().parent)
    lines = [(one, False) for one in here.wrong]
    lines += [
        _line(method, found["sources"][method.name], found["results"], here) for method in methods
    ]
    print("\n".join(line for line, _ in lines))
    if here.said:
        print(here.said)
    return all(holds for _, holds in lines)


def _line(
    method: Method, sources: dict[str, str], said: Sequence[Figure], here: Here
) -> tuple[str, bool]:
    """What is to be said of a method, and whether all its figures hold."""
    before, now = (
        {(f.game, f.seed, f.measure): f.value for f in figures if f.method == method.name}
        for figures in (said, here.figures)
    )
    if other := sorted({*method.sources.items()} ^ {*sources.items()}):
        return f"{method.name}: the file of {other[0][0]} is not the one that was measured", False
    if before.keys() != now.keys():
        missing = sorted(now.keys() ^ before.keys())[0]
        return f"{method.name}: results of other games, such as {missing[0]}", False
    wrong = [
        key
        for key, value in now.items()
        # Of a run that has left the numbers both are infinite, or not known.
        if not (
            value == before[key]
            or (math.isnan(value) and math.isnan(before[key]))
            or abs(value - before[key]) <= here.relative * min(abs(value), _LARGEST) + _ABSOLUTE
        )
    ]
    if wrong:
        game, seed, measure = wrong[0]
        return (
            f"{method.name}: {len(wrong)} of {len(now)} do not hold, the first on {game}, seed "
            f"{seed}, {measure}: {before[wrong[0]]:.4g}, and here {now[wrong[0]]:.4g}"
        ), False
    return f"{method.name}: all {len(now)} hold", True
