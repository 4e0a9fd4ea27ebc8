"""The file of a comparison: what it may say, and what is refused before anything is made."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import get_loader

from nlhf_zoo.cli.files import refuse_device
from nlhf_zoo.cli.parser import SentenceParser, with_values
from nlhf_zoo.cli.yaml_rules import dump, refuse_unclear
from nlhf_zoo.errors import UserError

Block = dict[str, Any]  # a part of a model: {class_path: ..., init_args: {...}}

# Parts that an algorithm may replace in its file.
BLOCKS = ("algorithm", "optimizer", "lr_scheduler", "rollout", "realisation")

# What a game and an algorithm may say; the first of these they must.
_OPTIONS = {"games": ("oracle", "reference", "start"), "algorithms": ("config", *BLOCKS, "sweep")}
_NAME = re.compile(r"[^/\\\x00-\x1f.\s][^/\\\x00-\x1f]*")
_LARGEST_SEED = 2**32 - 1


def require(condition: object, sentence: str) -> None:
    """Refuse a comparison, by a `UserError` with this sentence, unless a condition holds."""
    if not condition:
        raise UserError(sentence)


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """Where each run ends; a round that would exceed the budget is not begun.

    Args:
        queries: preference queries for each prompt.
        rounds: rounds.
    """

    queries: int | None = None
    rounds: int | None = None

    @property
    def counted(self) -> tuple[int, str]:
        """How much a run may play, and of what: queries where they are limited, else rounds."""
        by_queries = self.queries is not None
        return (self.queries or 0, "queries") if by_queries else (self.rounds or 0, "rounds")


@dataclass(frozen=True, slots=True)
class AlgorithmBlocks:
    """An algorithm: its own complete file for ``nlhf fit``, and what is to be replaced in it.

    Blocks are replaced whole, never merged: an argument of one class must not slip into another.
    """

    config: Path
    blocks: dict[str, Block]  # some of `BLOCKS`
    choices: Sequence[dict[str, float]] = ({},)  # of a sweep, such as {algorithm.eta: 1.0}


@dataclass(frozen=True, slots=True)
class Target:
    """What the queries are counted to; a run ends when all its games are there.

    Args:
        duality_gap: twice the exploitability, to be fallen below.
    """

    duality_gap: float


@dataclass(frozen=True, slots=True)
class Configuration:
    """Several algorithms, seeds and games on one budget: table, CSV and figure.

    Args:
        output: folder for everything that is written.
        budget: where each run ends.
        games: by name: the blocks oracle and, where they are given, reference and start.
        algorithms: by name.
        seeds: of the runs; generated games without a seed of their own are drawn anew for each.
        betas: temperatures; the one of the algorithms' files if not given.
        exploitability: which game's exploitability table and figure report.
        target: a duality gap; the queries to it are then tabulated.
        queries_axis: of the figure.
        sweep_seeds: so many of the first seeds choose the best value of each sweep and are not
            reported; the others play that value alone. Without it all seeds play all values, and
            what is chosen by them is reported of them, which flatters it.
        processes: runs that go on at a time, each in a process of its own on one thread; they
            change no figure.
        overwrite: whether an earlier comparison in the output folder is replaced.
    """

    output: Path
    budget: BudgetLimits
    games: dict[str, dict[str, Block]]
    algorithms: dict[str, AlgorithmBlocks]
    seeds: list[int] = field(default_factory=lambda: [0])
    betas: list[float] | None = None
    exploitability: Literal["regularised", "unregularised"] = "regularised"
    target: Target | None = None
    queries_axis: Literal["linear", "log"] = "linear"
    sweep_seeds: int | None = None
    processes: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        queries, rounds = self.budget.queries, self.budget.rounds
        rule = "there is no budget: set budget.queries or budget.rounds"
        require(queries is not None or rounds is not None, rule)
        least = (("budget.queries", queries, 0), ("budget.rounds", rounds, 0))
        for name, value, limit in (*least, ("processes", self.processes, 1)):
            rule = f"{name} must be at least {limit}, but it is {value}"
            require((value or 0) >= limit, rule)
        require(self.seeds, "there are no seeds: give at least one, as in seeds: [0]")
        for seed in self.seeds:
            rule = f"seeds must lie between 0 and {_LARGEST_SEED}, but one is {seed}"
            require(0 <= seed <= _LARGEST_SEED, rule)
            require(self.seeds.count(seed) == 1, f"the seed {seed} stands twice: give each once")
        if self.betas is not None:
            _check_numbers("betas", self.betas)
        if self.sweep_seeds is not None:
            rule = "sweep_seeds must be at least 1 and leave a seed to report of the "
            rule += f"{len(self.seeds)}, but it is {self.sweep_seeds}"
            require(1 <= self.sweep_seeds < len(self.seeds), rule)
            rule = "sweep_seeds is given, but no algorithm has a sweep: leave it out"
            require(self.sweeps, rule)
        if self.target is not None:
            gap = self.target.duality_gap
            rule = f"target.duality_gap must be a finite number above 0, but it is {gap}"
            require(math.isfinite(gap) and gap > 0, rule)
        _check_folder(self.output)

    @property
    def sweeps(self) -> bool:
        """Whether any algorithm sweeps an argument."""
        return any(choice for own in self.algorithms.values() for choice in own.choices)

    @property
    def split_seeds(self) -> tuple[list[int], list[int]]:
        """Seeds that choose the best value of each sweep alone, and those that are reported."""
        number = self.sweep_seeds or 0
        return self.seeds[:number], self.seeds[number:]


def _check_numbers(where: str, values: list[float]) -> None:
    require(values, f"{where} is empty: give at least one value, or leave it out")
    for value in values:
        rule = f"{where} must be finite numbers above 0, but one is {value}"
        require(math.isfinite(value) and value > 0, rule)
        require(values.count(value) == 1, f"{where} has {value} twice: give each once")


def _check_folder(output: Path) -> None:
    """It can be written to, or created: below this folder, or in one that there is."""
    place, where = output.absolute(), f"output {output}:"
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    below = place.resolve().is_relative_to(Path.cwd().resolve())
    rule = f"{where} the folder {place.parent} does not exist, create it first"
    require(below or existing in (place, place.parent), rule)
    require(existing.is_dir(), f"{where} {existing} is a file, give the name of a folder")
    rule = f"{where} {existing} cannot be written to, check its permissions"
    require(os.access(existing, os.W_OK), rule)


def read_configuration(args: list[str]) -> Configuration:
    """Read the file of a comparison, and what the command line puts in its place."""
    parser = SentenceParser(
        prog="nlhf compare", description="Several algorithms, seeds and games on one budget."
    )
    # Games and algorithms are read here: jsonargparse would make what they name.
    parser.add_argument("-c", "--config", action="config", help="the comparison's YAML file")
    parser.add_class_arguments(Configuration, skip={"games", "algorithms"})
    paths = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    paths.add_argument("-c", "--config", type=Path, action="append", default=[])
    try:
        known, rest = paths.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(f"--config: {error.message}") from error
    if {"-h", "--help"} & {*rest}:
        parser.parse_args(["--help"])
    example = "--config configs/compare/quickstart.yaml"
    require(known.config, f"there is no file: give the comparison's, as in {example}")
    rule = "--config is given more than once: a comparison has one file"
    require(len(known.config) == 1, rule)
    path = known.config[0]
    file = load_yaml(path)
    needed = "it needs output, budget, games and algorithms"
    require(isinstance(file, dict), f"{path} holds no configuration: {needed}")
    for group in ("budget", "target"):
        _mapping(file.get(group, {}), f"{group} must be a mapping")
    games = _sections(file.pop("games", None), "games")
    algorithms = _sections(file.pop("algorithms", None), "algorithms")
    overrides = with_values(rest, ["--overwrite"])
    try:
        parsed = parser.parse_args(["--config", dump(file), *overrides])
    except UserError as error:
        raise UserError(str(error).replace("--config.", "")) from error
    del parsed["config"]
    return Configuration(
        games=games,
        algorithms={
            name: _algorithm(f"algorithms.{name}", section, path.parent)
            for name, section in algorithms.items()
        },
        **vars(parser.instantiate(parsed)),
    )


def load_yaml(path: Path) -> Any:
    """A YAML file as jsonargparse reads it (1e-5 is a number), if it means one thing."""
    refuse_device(str(path), option="")
    try:
        text = path.read_text(encoding="utf-8")
        refuse_unclear(text, str(path))
        return get_loader("yaml")(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _mapping(value: Any, rule: str) -> dict[Any, Any]:
    require(isinstance(value, dict), f"{rule}, but it is {value!r}")
    return dict(value)


def _sections(given: Any, kind: str) -> dict[str, dict[str, Any]]:
    """Games or algorithms by name; jsonargparse would blame mistakes on the wrong key."""
    named = _mapping(given or {}, f"{kind} must name each of them, as in {kind}: {{name: ...}}")
    require(named, f"there are no {kind}: name at least one under {kind}")
    needed, options = _OPTIONS[kind][0], _OPTIONS[kind]
    for name, section in named.items():
        rule = "names become folders: do without slashes, and start with no dot"
        require(_NAME.fullmatch(str(name)), f"{kind} has the name {name!r}, but {rule}")
        where = f"{kind}.{name}"
        for option in _mapping(section, f"{where} must be a mapping"):
            choose = f"choose of {', '.join(options)}"
            require(option in options, f"{where}: option {option!r} is not accepted, {choose}")
        require(section.get(needed) is not None, f"{where} lacks {needed}: give it")
        for option, block in section.items():
            if option not in ("config", "sweep") and block is not None:
                _check_block(f"{where}.{option}", block)
    return {str(name): section for name, section in named.items()}


def _check_block(where: str, block: Any) -> None:
    rule = f"{where} must be {{class_path: ..., init_args: ...}}"
    named = isinstance(_mapping(block, rule).get("class_path"), str)
    require(named, f"{rule}, but it is {block!r}")
    for key in block.keys() - {"class_path", "init_args"}:
        raise UserError(f"{where}: option {key!r} is not accepted, put arguments under init_args")
    _mapping(block.get("init_args", {}), f"{where}.init_args must be a mapping")


def _algorithm(where: str, section: dict[str, Any], folder: Path) -> AlgorithmBlocks:
    """An algorithm, whose file is relative to a folder."""
    config, sweep = section["config"], section.get("sweep")
    rule = f"{where}.config must be the path of a file, but it is {config!r}"
    require(isinstance(config, str), rule)
    blocks = {key: section[key] for key in BLOCKS if section.get(key) is not None}
    if sweep is None:
        return AlgorithmBlocks(folder / config, blocks)
    return AlgorithmBlocks(folder / config, blocks, _choices(f"{where}.sweep", sweep))


def _choices(where: str, sweep: Any) -> list[dict[str, float]]:
    """All combinations of the values of the arguments that are swept."""
    rule = f"{where} must name arguments of blocks, such as algorithm.eta: [1.0, 0.3]"
    require(isinstance(sweep, dict) and sweep, f"{rule}, but it is {sweep!r}")
    for argument, values in sweep.items():
        block, _, name = str(argument).partition(".")
        require(block in BLOCKS and name, f"{rule}, but it is {sweep!r}")
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        rule_of_values = f"{where}.{argument} must be a list of numbers, but it is {values!r}"
        require(numbers, rule_of_values)
        _check_numbers(f"{where}.{argument}", values)
    return [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]
