"""The file of a comparison: what it may say, and what is refused before anything runs."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from jsonargparse import get_loader

from nlhf_zoo.cli.parser import SentenceParser
from nlhf_zoo.errors import UserError

Block = dict[str, Any]  # a part of a model: {class_path: ..., init_args: {...}}

# Parts that an algorithm may replace in its file.
BLOCKS = ("algorithm", "optimizer", "lr_scheduler", "rollout", "realisation")


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
        sweep: values of one argument, such as {algorithm.eta: [1.0, 0.3]}; each is played, and the
            best is shown.
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
        sweep_seeds: so many of the first seeds choose the best value of each sweep and are not
            reported; the others play that value alone. Without it all seeds play all values, and
            what is chosen by them is reported of them, which flatters it.
        processes: runs that go on at a time, each in a process of its own on one thread; they
            change no figure.
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
    sweep_seeds: int | None = None
    processes: int = 1
    overwrite: bool = False

    @property
    def choosing(self) -> list[int]:
        """Seeds that choose the best value of each sweep, where these are others than reported."""
        return self.seeds[: self.sweep_seeds or 0]

    @property
    def reported(self) -> list[int]:
        """Seeds that tables and figure are of."""
        return self.seeds[self.sweep_seeds or 0 :]


def read_configuration(args: list[str]) -> tuple[Configuration, Path]:
    """Read the file of a comparison, and what the command line puts in its place.

    Args:
        args: what stands behind ``nlhf compare``.

    Returns:
        the configuration, and the folder that its paths are relative to.

    Raises:
        UserError: something in it cannot be used.
        SystemExit: help was asked for.
    """
    parser = SentenceParser(
        prog="nlhf compare", description="Several algorithms, seeds and games on one budget."
    )
    # Games and algorithms are read here: jsonargparse would make what they name.
    parser.add_argument("-c", "--config", action="config", help="the comparison's YAML file")
    parser.add_class_arguments(Configuration, skip={"games", "algorithms"})
    path, rest = _config_path(args)
    if {"-h", "--help"} & {*rest}:
        parser.parse_args(["--help"])
    if path is None:
        raise UserError(
            "there is no file: give the comparison's, as in "
            "--config configs/compare/quickstart.yaml"
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
    overrides = [f"{argument}=true" if argument == "--overwrite" else argument for argument in rest]
    try:
        parsed = parser.parse_args(["--config", others, *overrides])
    except UserError as error:
        raise UserError(str(error).replace("--config.", "")) from error
    del parsed["config"]
    configuration = Configuration(
        games=games, algorithms=algorithms, **vars(parser.instantiate(parsed))
    )
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


def _config_path(args: list[str]) -> tuple[Path | None, list[str]]:
    """The comparison's file, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", type=Path, action="append", default=[])
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
    """What a game or an algorithm says; jsonargparse would blame mistakes on the wrong key."""
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
                    f"{key.value!r} stands twice, again in line "
                    f"{key.start_mark.line + 1}: give each once"
                )
            seen.add(key.value)
            _refuse_duplicates(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_duplicates(value)
