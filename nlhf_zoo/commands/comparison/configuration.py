"""The file of a comparison: what it may say, and what is refused before anything runs."""

from __future__ import annotations

import argparse
import math
import os
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, get_loader

from nlhf_zoo.errors import UserError

Block = dict[str, Any]  # a part of a model: {class_path: ..., init_args: {...}}

_LARGEST_SEED = 2**32 - 1
_NAME = re.compile(r"[^/\\\x00-\x1f.\s][^/\\\x00-\x1f]*")


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """Where each run ends; a round that would exceed the budget is not begun.

    Args:
        queries: preference queries for each prompt.
        rounds: rounds.
    """

    queries: int | None = None
    rounds: int | None = None


@dataclass(frozen=True, slots=True)
class GameBlocks:
    """A game that every algorithm plays.

    Args:
        oracle: who judges.
        reference: the reference policy; uniform if it is not given.
        start: where policies start; at the reference if it is not given.
    """

    oracle: Block
    reference: Block | None = None
    start: Block | None = None


@dataclass(frozen=True, slots=True)
class AlgorithmBlocks:
    """An algorithm: its own complete file for ``nlhf fit``, and what is to be replaced in it.

    Blocks are replaced whole, never merged: an argument of one class must not slip into another.

    Args:
        config: the file, relative to the comparison's.
        algorithm: in place of the file's.
        optimizer: in place of the file's.
        lr_scheduler: in place of the file's.
        rollout: in place of the file's.
        realisation: in place of the file's.
        sweep: values of one argument, such as {algorithm.eta: [1.0, 0.3]}; each is played, and the best is shown.
    """

    config: str
    algorithm: Block | None = None
    optimizer: Block | None = None
    lr_scheduler: Block | None = None
    rollout: Block | None = None
    realisation: Block | None = None
    sweep: dict[str, list[float]] | None = None


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
        games: by name.
        algorithms: by name.
        seeds: of the runs; generated games without a seed of their own are drawn anew for each.
        betas: temperatures; the one of the algorithms' files if not given.
        exploitability: which game's exploitability table and figure report.
        target: a duality gap; the queries to it are then tabulated.
        queries_axis: of the figure.
        overwrite: whether an earlier comparison in the output folder is replaced.
    """

    output: Path
    budget: BudgetLimits
    games: dict[str, GameBlocks]
    algorithms: dict[str, AlgorithmBlocks]
    seeds: list[int] = field(default_factory=lambda: [0])
    betas: list[float] | None = None
    exploitability: Literal["regularised", "unregularised"] = "regularised"
    target: Target | None = None
    queries_axis: Literal["linear", "log"] = "linear"
    overwrite: bool = False


def read_configuration(args: list[str]) -> tuple[Configuration, Path]:
    """Read the file of a comparison, and what the command line puts in its place.

    Args:
        args: what stands behind ``nlhf compare``.

    Returns:
        the checked configuration, and the folder that its paths are relative to.

    Raises:
        UserError: something in it cannot be used.
        SystemExit: help was asked for.
    """
    parser = _Parser(
        prog="nlhf compare", description="Several algorithms, seeds and games on one budget."
    )
    parser.add_argument(
        "--config",
        action="config",
        help="the comparison's YAML file, with its games and algorithms",
    )
    parser.add_class_arguments(Configuration, skip={"games", "algorithms"})
    path, rest = _config_path(args)
    if path is None:
        parser.parse_args(rest if {"-h", "--help"} & {*rest} else [])  # says what it needs
        raise UserError(
            "there is no file: give the comparison's, as in --config configs/compare/quickstart.yaml"
        )
    file = load_yaml(path)
    if not isinstance(file, dict):
        raise UserError(
            f"{path} holds no configuration: it needs output, budget, games and algorithms"
        )
    for group in ("budget", "target"):
        if not isinstance(file.get(group, {}), dict):
            raise UserError(f"{group} must be a mapping, but it is {file[group]!r}")
    games = {
        name: _blocks(GameBlocks, f"games.{name}", value)
        for name, value in _named(file, "games").items()
    }
    algorithms = {
        name: _blocks(AlgorithmBlocks, f"algorithms.{name}", value)
        for name, value in _named(file, "algorithms").items()
    }
    others = yaml.safe_dump(
        {key: value for key, value in file.items() if key not in ("games", "algorithms")}
    )
    parsed = parser.parse_args(
        ["--config", others, *(f"{a}=true" if a == "--overwrite" else a for a in rest)]
    )
    del parsed["config"]
    configuration = Configuration(
        games=games, algorithms=algorithms, **vars(parser.instantiate(parsed))
    )
    _check(configuration)
    return configuration, path.absolute().parent


def load_yaml(path: Path) -> Any:
    """A YAML file, read safely and with nothing said twice.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return _load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def sentence(message: str) -> str:
    """What jsonargparse says, on one line and with the key in front."""
    message = " ".join(message.split()).removeprefix("Problems parsing config: ")
    keys = re.findall(r'Parser key "([^"]+)": ', message)
    message = re.sub(r'Parser key "[^"]+": ', "", message)
    message = re.sub(r"Problem with given class_path '[^']+': ", "", message)
    message = re.sub(r"Expected a dot import path string: (\S+)", r"there is no class \1", message)
    kinds = re.findall(r"Expected an? <class '(\w+)'>", message)
    value = re.search(r"(?:Given|Got) value: (.*)", message)
    if kinds and value:
        kinds = [kind.replace("NoneType", "null") for kind in kinds]
        message = f"expected {' or '.join(kinds)}, but got {value[1]!r}"
    if keys[:1] == ["config"]:  # the comparison's file: its keys speak for themselves
        keys = keys[1:]
    return f"{'.'.join(keys)}: {message}" if keys else message


class _Parser(ArgumentParser):
    """A parser that refuses in one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong.

        Raises:
            UserError: always.
        """
        raise UserError(sentence(message)) from ex


def _config_path(args: list[str]) -> tuple[Path | None, list[str]]:
    """The comparison's file, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path, action="append", default=[])
    try:
        known, rest = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(f"--config: {error.message}") from error
    if len(known.config) > 1:
        raise UserError("--config is given more than once: a comparison has one file")
    return (known.config[0] if known.config else None), rest


def _named(file: dict[str, Any], key: str) -> dict[str, Any]:
    """The games or the algorithms by name."""
    named = file.get(key) or {}
    if not isinstance(named, dict):
        raise UserError(
            f"{key} must name each of them, as in {key}: {{name: ...}}, but it is {named!r}"
        )
    return {str(name): value for name, value in named.items()}


_Blocks = TypeVar("_Blocks", GameBlocks, AlgorithmBlocks)


def _blocks(kind: type[_Blocks], where: str, value: Any) -> _Blocks:
    """What a game or an algorithm says, checked: these would be blamed on the wrong key by jsonargparse."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping, but it is {value!r}")
    accepted = {f.name: f for f in fields(kind)}
    for key in value:
        if key not in accepted:
            raise UserError(
                f"{where}: option {key!r} is not accepted, choose of {', '.join(accepted)}"
            )
    for key, f in accepted.items():
        if f.default is MISSING and value.get(key) is None:
            raise UserError(f"{where} lacks {key}: give it")
    if "config" in accepted and not isinstance(value["config"], str):
        raise UserError(f"{where}.config must be the path of a file, but it is {value['config']!r}")
    for key, block in value.items():
        if key not in ("config", "sweep") and block is not None:
            _check_block(f"{where}.{key}", block)
    return kind(**value)


def _check_block(where: str, block: Any) -> None:
    if not isinstance(block, dict) or not isinstance(block.get("class_path"), str):
        raise UserError(f"{where} must be {{class_path: ..., init_args: ...}}, but it is {block!r}")
    for key in block.keys() - {"class_path", "init_args"}:
        raise UserError(f"{where}: option {key!r} is not accepted, put arguments under init_args")
    if not isinstance(block.get("init_args", {}), dict):
        raise UserError(f"{where}.init_args must be a mapping, but it is {block['init_args']!r}")


def _load(text: str) -> Any:
    """YAML as jsonargparse reads it (1e-5 is a number); a key that stands twice is refused."""
    _refuse_duplicates(yaml.compose(text, Loader=yaml.SafeLoader))
    return get_loader("yaml")(text)


def _refuse_duplicates(node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(
                    f"line {key.start_mark.line + 1} has a key that is no plain name: give it one"
                )
            if key.value in seen:
                raise UserError(
                    f"{key.value!r} stands twice, again in line {key.start_mark.line + 1}: give each once"
                )
            seen.add(key.value)
            _refuse_duplicates(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(value)


def _check(configuration: Configuration) -> None:
    _check_budget(configuration)
    _check_names("games", list(configuration.games))
    _check_names("algorithms", list(configuration.algorithms))
    _check_seeds(configuration.seeds)
    _check_numbers("betas", configuration.betas)
    for name, algorithm in configuration.algorithms.items():
        if algorithm.sweep is not None:
            _check_sweep(f"algorithms.{name}.sweep", algorithm.sweep)
    target = configuration.target
    if target is not None and not (math.isfinite(target.duality_gap) and target.duality_gap > 0):
        raise UserError(
            f"target.duality_gap must be a finite number above 0, but it is {target.duality_gap}"
        )
    _check_output(configuration)


def _check_budget(configuration: Configuration) -> None:
    budget = configuration.budget
    limits = {"queries": budget.queries, "rounds": budget.rounds}
    if all(value is None for value in limits.values()):
        raise UserError("there is no budget: set budget.queries or budget.rounds")
    for name, value in limits.items():
        if value is not None and value < 0:
            raise UserError(f"budget.{name} must be at least 0, but it is {value}")


def _check_names(what: str, names: list[str]) -> None:
    if not names:
        raise UserError(f"there are no {what}: name at least one under {what}")
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{what} has the name {name!r}, but names become folders: do without slashes, and start with no dot"
            )


def _check_seeds(seeds: list[int]) -> None:
    if not seeds:
        raise UserError("there are no seeds: give at least one, as in seeds: [0]")
    for seed in seeds:
        if not 0 <= seed <= _LARGEST_SEED:
            raise UserError(f"seeds must lie between 0 and {_LARGEST_SEED}, but one is {seed}")
        if seeds.count(seed) > 1:
            raise UserError(f"the seed {seed} stands twice: give each once")


def _check_numbers(what: str, values: list[float] | None) -> None:
    if values is None:
        return
    if not values:
        raise UserError(f"{what} is empty: give at least one value, or leave it out")
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{what} must be finite numbers above 0, but one is {value}")
        if values.count(value) > 1:
            raise UserError(f"{what} has {value} twice: give each once")


def _check_sweep(where: str, sweep: Any) -> None:
    if not isinstance(sweep, dict) or len(sweep) != 1:
        raise UserError(
            f"{where} must name one argument, as in {{algorithm.eta: [1.0, 0.3]}}, but it is {sweep!r}"
        )
    ((argument, values),) = sweep.items()
    block, _, name = argument.partition(".")
    if (
        block not in ("algorithm", "optimizer", "lr_scheduler", "rollout", "realisation")
        or not name
    ):
        raise UserError(
            f"{where} names {argument!r}: give an argument of a block, such as algorithm.eta or optimizer.lr"
        )
    if not isinstance(values, list) or not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    ):
        raise UserError(f"{where}.{argument} must be a list of numbers, but it is {values!r}")
    _check_numbers(f"{where}.{argument}", values)


def _check_output(configuration: Configuration) -> None:
    output = configuration.output
    existing = output.absolute()
    while not existing.exists():
        existing = existing.parent
    below_here = output.absolute().resolve().is_relative_to(Path.cwd().resolve())
    if existing != output.absolute() and not below_here and not output.absolute().parent.exists():
        raise UserError(
            f"output {output}: the folder {output.absolute().parent} does not exist, create it first"
        )
    if not existing.is_dir():
        raise UserError(f"output {output}: {existing} is a file, give the name of a folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"output {output}: {existing} cannot be written to, check its permissions")
