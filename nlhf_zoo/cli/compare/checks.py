"""What is refused in a comparison's file before anything is made from it."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

from nlhf_zoo.cli.compare.configuration import BLOCKS, Configuration
from nlhf_zoo.errors import UserError

_LARGEST_SEED = 2**32 - 1
_NAME = re.compile(r"[^/\\\x00-\x1f.\s][^/\\\x00-\x1f]*")


def check(configuration: Configuration) -> None:
    """Refuse what no comparison can be made from.

    Raises:
        UserError: something is out of range, missing, or cannot be written.
    """
    _budget(configuration)
    _names("games", list(configuration.games))
    _names("algorithms", list(configuration.algorithms))
    _seeds(configuration.seeds)
    _numbers("betas", configuration.betas)
    for name, algorithm in configuration.algorithms.items():
        if algorithm.sweep is not None:
            _sweep(f"algorithms.{name}.sweep", algorithm.sweep)
    _sweep_seeds(configuration)
    if configuration.processes < 1:
        raise UserError(f"processes must be at least 1, but it is {configuration.processes}")
    target = configuration.target
    if target is not None and not (math.isfinite(target.duality_gap) and target.duality_gap > 0):
        raise UserError(
            f"target.duality_gap must be a finite number above 0, but it is {target.duality_gap}"
        )
    _output(configuration)


def _budget(configuration: Configuration) -> None:
    budget = configuration.budget
    limits = {"queries": budget.queries, "rounds": budget.rounds}
    if all(value is None for value in limits.values()):
        raise UserError("there is no budget: set budget.queries or budget.rounds")
    for name, value in limits.items():
        if value is not None and value < 0:
            raise UserError(f"budget.{name} must be at least 0, but it is {value}")


def _names(what: str, names: list[str]) -> None:
    if not names:
        raise UserError(f"there are no {what}: name at least one under {what}")
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{what} has the name {name!r}, but names become folders: "
                "do without slashes, and start with no dot"
            )


def _seeds(seeds: list[int]) -> None:
    if not seeds:
        raise UserError("there are no seeds: give at least one, as in seeds: [0]")
    for seed in seeds:
        if not 0 <= seed <= _LARGEST_SEED:
            raise UserError(f"seeds must lie between 0 and {_LARGEST_SEED}, but one is {seed}")
        if seeds.count(seed) > 1:
            raise UserError(f"the seed {seed} stands twice: give each once")


def _numbers(what: str, values: list[float] | None) -> None:
    if values is None:
        return
    if not values:
        raise UserError(f"{what} is empty: give at least one value, or leave it out")
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{what} must be finite numbers above 0, but one is {value}")
        if values.count(value) > 1:
            raise UserError(f"{what} has {value} twice: give each once")


def _sweep(where: str, sweep: Any) -> None:
    if not isinstance(sweep, dict) or len(sweep) != 1:
        raise UserError(
            f"{where} must name one argument, as in {{algorithm.eta: [1.0, 0.3]}}, "
            f"but it is {sweep!r}"
        )
    ((argument, values),) = sweep.items()
    block, _, name = argument.partition(".")
    if block not in BLOCKS or not name:
        raise UserError(
            f"{where} names {argument!r}: give an argument of a block, such as "
            "algorithm.eta or optimizer.lr"
        )
    if not isinstance(values, list) or not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    ):
        raise UserError(f"{where}.{argument} must be a list of numbers, but it is {values!r}")
    _numbers(f"{where}.{argument}", values)


def _sweep_seeds(configuration: Configuration) -> None:
    number, seeds = configuration.sweep_seeds, len(configuration.seeds)
    if number is None:
        return
    if not 1 <= number < seeds:
        raise UserError(
            f"sweep_seeds must be at least 1 and leave a seed to report of the {seeds}, "
            f"but it is {number}"
        )
    if all(algorithm.sweep is None for algorithm in configuration.algorithms.values()):
        raise UserError("sweep_seeds is given, but no algorithm has a sweep: leave it out")


def _output(configuration: Configuration) -> None:
    output = configuration.output
    existing = output.absolute()
    while not existing.exists():
        existing = existing.parent
    below_here = output.absolute().resolve().is_relative_to(Path.cwd().resolve())
    if existing != output.absolute() and not below_here and not output.absolute().parent.exists():
        raise UserError(
            f"output {output}: the folder {output.absolute().parent} does not exist, "
            "create it first"
        )
    if not existing.is_dir():
        raise UserError(f"output {output}: {existing} is a file, give the name of a folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"output {output}: {existing} cannot be written to, check its permissions")
