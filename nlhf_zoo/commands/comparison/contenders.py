"""The contenders: each algorithm on each game, parsed and tried out before anything runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from nlhf_zoo.commands.comparison.configuration import (
    BLOCKS,
    AlgorithmBlocks,
    Block,
    Configuration,
    GameBlocks,
    load_yaml,
)
from nlhf_zoo.errors import UserError
from nlhf_zoo.online_game import OnlineGame

# Its module also imports what short class names in the files stand for.
from nlhf_zoo.trainer_cli import GameArgumentParser

# What a file says of its Trainer that changes what is learnt; the rest is the comparison's.
_TRAINER_KEYS = (
    "accelerator",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "accumulate_grad_batches",
)


@dataclass(frozen=True, slots=True)
class Contender:
    """An algorithm with its arguments, on a game at one temperature.

    Args:
        game: the game's name in the comparison.
        beta: temperature.
        where: game's name, and beta where there are several: names a folder.
        algorithm: the algorithm's name in the comparison.
        value: of the argument that is swept; None where nothing is.
        label: the algorithm's name with that value.
        make: makes the model; what is drawn takes the run's seed.
        trainer: arguments for the Trainer.
        size: entries of the game's table, C N N.
    """

    game: str
    beta: float
    where: str
    algorithm: str
    value: float | None
    label: str
    make: Callable[[], OnlineGame]
    trainer: dict[str, Any]
    size: int


def read_contenders(
    configuration: Configuration, folder: Path, report: Callable[[], Any]
) -> list[Contender]:
    """Every contender of a comparison, each made once to see that it can be.

    Args:
        configuration: of the comparison.
        folder: that the algorithms' files are relative to.
        report: called after each.

    Raises:
        UserError: one cannot be made, or those of a game would not play the same game.
    """
    files = {
        name: _read(name, folder / own.config) for name, own in configuration.algorithms.items()
    }
    betas = configuration.betas or [_common_beta(files)]
    found = []
    for game, blocks in configuration.games.items():
        for name, own in configuration.algorithms.items():
            for value in swept(own):
                label = _label(name, own, value)
                where = f"{label} on {game} ({own.config})"
                make = _maker(_model(files[name]["model"], own, blocks, value, where), where)
                for beta in betas:
                    size = _try(partial(make, beta), configuration.seeds[0], where)
                    found.append(
                        Contender(
                            game=game,
                            beta=beta,
                            where=f"{game} beta={beta:g}" if len(betas) > 1 else game,
                            algorithm=name,
                            value=value,
                            label=label,
                            make=partial(make, beta),
                            trainer=files[name]["trainer"],
                            size=size,
                        )
                    )
                    report()
    names = [(contender.where, contender.label) for contender in found]
    for at, label in names:
        if names.count((at, label)) > 1:
            raise UserError(
                f"{label} on {at} stands twice: name algorithms, betas and values apart"
            )
    return sorted(
        found, key=lambda c: (list(configuration.games).index(c.game), betas.index(c.beta))
    )


def swept(own: AlgorithmBlocks) -> list[float | None]:
    """The values that an algorithm sweeps, or None alone."""
    return [*next(iter(own.sweep.values()))] if own.sweep else [None]


def _label(name: str, own: AlgorithmBlocks, value: float | None) -> str:
    if value is None or own.sweep is None:
        return name
    return f"{name} ({next(iter(own.sweep)).split('.')[-1]}={value:g})"


def _read(name: str, path: Path) -> dict[str, Any]:
    """The model and the Trainer's arguments of an algorithm's file."""
    if not path.is_file():
        raise UserError(f"algorithms.{name}.config: there is no file {path}")
    file = load_yaml(path)
    model = file.get("model") if isinstance(file, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("init_args"), dict):
        raise UserError(
            f"{path} has no section `model` with init_args: give a complete file for `nlhf fit`"
        )
    data = file.get("data") or {}
    if isinstance(data, dict) and data.get("init_args"):
        raise UserError(
            f"{path} sets data.init_args, but a comparison plays all prompts at once: "
            "leave them out"
        )
    trainer = file.get("trainer") or {}
    arguments = {key: trainer[key] for key in _TRAINER_KEYS if key in trainer}
    try:
        L.Trainer(**arguments, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"{path}, trainer: {error}") from error
    return {"model": model, "trainer": arguments}


def _common_beta(files: dict[str, dict[str, Any]]) -> float:
    """The beta of all files; they must play one game."""
    betas = {name: file["model"]["init_args"].get("beta") for name, file in files.items()}
    first, beta = next(iter(betas.items()))
    for name, other in betas.items():
        if other != beta:
            raise UserError(
                f"{first} plays at beta = {beta} and {name} at beta = {other}, which are two "
                "games: set betas"
            )
    if not isinstance(beta, (int, float)):
        raise UserError("no beta is given, neither in the algorithms' files nor here: set betas")
    return float(beta)


def _model(
    model: dict[str, Any], own: AlgorithmBlocks, game: GameBlocks, value: float | None, where: str
) -> dict[str, Any]:
    """The section `model` of an algorithm's file, with the blocks of this game and comparison."""
    model = copy.deepcopy(model)
    arguments = model["init_args"]
    arguments["oracle"] = game.oracle
    policy = _with_arguments(arguments.get("policy"))
    if policy is None:
        raise UserError(f"{where}: the file has no model.init_args.policy")
    for key, block in (("reference", game.reference), ("start", game.start)):
        policy["init_args"].pop(key, None)
        if block is not None:
            policy["init_args"][key] = block
    arguments["policy"] = policy
    for key in BLOCKS:
        if (block := getattr(own, key)) is not None:
            arguments[key] = block
    if own.sweep is not None:
        key, _, argument = next(iter(own.sweep)).partition(".")
        block = _with_arguments(arguments.get(key))
        if block is None:
            raise UserError(f"{where}: the sweep is over {key}.{argument}, but there is no {key}")
        block["init_args"][argument] = value
        arguments[key] = block
    return model


def _with_arguments(block: object) -> Block | None:
    """A block that can be added to; it may be a class name alone."""
    if isinstance(block, str):
        return {"class_path": block, "init_args": {}}
    if not isinstance(block, dict):
        return None
    return {**block, "init_args": {**(block.get("init_args") or {})}}


def _maker(model: dict[str, Any], where: str) -> Callable[[float], OnlineGame]:
    """Parse a model once, to be made any number of times at any beta."""
    parser = GameArgumentParser(parser_mode="omegaconf+", prog="nlhf compare")
    parser.add_argument("--model", type=OnlineGame)
    try:
        parsed: Namespace = parser.parse_object({"model": {"class_path": "OnlineGame", **model}})
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('--')}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: an interpolation fails: {error}") from error

    def make(beta: float) -> OnlineGame:
        now = parsed.clone()
        now.model.init_args.beta = beta
        game: OnlineGame = parser.instantiate(now).model
        return game

    return make


def _try(make: Callable[[], OnlineGame], seed: int, where: str) -> int:
    """Make a model; what it cannot do is found now. Returns the entries of the game's table."""
    L.seed_everything(seed, verbose=False)
    try:
        game = make()
        table = game.oracle.table
        if table is None:
            raise UserError(
                f"{type(game.oracle).__name__} holds no table of preferences, which exact metrics "
                "need: compare on games that do"
            )
        game.log_policy()
    except (ValueError, TypeError, OSError, ImportError, MisconfigurationException) as error:
        raise UserError(f"{where}: {error}") from error
    return table.numel()
