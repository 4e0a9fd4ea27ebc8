"""Contenders: each algorithm on each game, with their models parsed and tried out before anything runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from nlhf_zoo.commands.comparison.configuration import (
    AlgorithmBlocks,
    Block,
    Configuration,
    GameBlocks,
    load_yaml,
    sentence,
)
from nlhf_zoo.errors import UserError
from nlhf_zoo.online_game import OnlineGame

# Also imported so that short class names resolve in the files.
from nlhf_zoo.trainer_cli import GameArgumentParser

# What an algorithm's file says of its Trainer that changes what is learnt, or where; the rest is the comparison's.
_TRAINER_KEYS = (
    "accelerator",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "accumulate_grad_batches",
)
_REFUSALS = (ValueError, TypeError, OSError, ImportError, MisconfigurationException)


@dataclass(frozen=True, slots=True)
class Contender:
    """An algorithm with its arguments, on a game at one temperature.

    Args:
        game: the game's name, with beta where there are several.
        title: game and beta, for people.
        beta: temperature.
        algorithm: the algorithm's name in the comparison.
        value: of the argument that is swept; None where nothing is.
        label: the algorithm's name with that value.
        make: makes the model; generated games and starts take the seed set before.
        trainer: arguments of the Trainer.
    """

    game: str
    title: str
    beta: float
    algorithm: str
    value: float | None
    label: str
    make: Callable[[], OnlineGame]
    trainer: dict[str, Any]


def contenders(
    configuration: Configuration, folder: Path, report: Callable[[], Any] = lambda: None
) -> list[Contender]:
    """Every contender of a comparison, each tried out once.

    Args:
        configuration: of the comparison.
        folder: that the algorithms' files are relative to.
        report: called after each.

    Raises:
        UserError: a model cannot be made, or the contenders of a game would not play the same one.
    """
    files = {
        name: _read(name, folder / blocks.config) for name, blocks in configuration.algorithms.items()
    }
    betas = configuration.betas or [_common_beta(files)]
    parser = GameArgumentParser(parser_mode="omegaconf+", prog="nlhf compare")
    parser.add_argument("--model", type=OnlineGame)
    found: dict[tuple[str, str], list[Contender]] = {}
    for game, blocks in configuration.games.items():
        for name, own in configuration.algorithms.items():
            for value in next(iter(own.sweep.values())) if own.sweep else [None]:
                label = name if value is None else f"{name} ({_argument(own)}={value:g})"
                where = f"{label} ({configuration.algorithms[name].config}) on the game {game}"
                model = _parse(parser, _model(files[name], own, blocks, value), where)
                for beta in betas:
                    at = f"{game} beta={beta:g}" if len(betas) > 1 else game
                    contender = Contender(
                        at,
                        f"{game}, beta = {beta:g}",
                        beta,
                        name,
                        value,
                        label,
                        _maker(parser, model, beta),
                        _trainer(files[name]),
                    )
                    _try(contender, configuration, where)
                    found.setdefault((at, ""), []).append(contender)
                    report()
    _refuse_same_labels(configuration)
    return [contender for group in found.values() for contender in group]


def count(configuration: Configuration) -> int:
    """How many contenders there are."""
    values = sum(
        len(next(iter(own.sweep.values()))) if own.sweep else 1
        for own in configuration.algorithms.values()
    )
    return len(configuration.games) * len(configuration.betas or [0]) * values
