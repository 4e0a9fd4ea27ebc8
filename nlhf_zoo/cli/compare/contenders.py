"""The contenders: each algorithm on each game, parsed and tried out before anything runs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from nlhf_zoo.cli.compare.configuration import (
    BLOCKS,
    AlgorithmBlocks,
    Block,
    Configuration,
    GameBlocks,
    load_yaml,
)

# Its module also imports what short class names in the files stand for.
from nlhf_zoo.cli.parser import SentenceParser
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.policies import Policy

# What a file says of its Trainer that changes what is learnt; the rest is the comparison's.
_TRAINER_KEYS = (
    "accelerator",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "accumulate_grad_batches",
)


class Maker:
    """Makes a game, any number of times, in this process or another.

    Args:
        model: the section `model` of a file for ``nlhf fit``.
    """

    def __init__(self, model: Block) -> None:
        self.model = model
        self._parsed: tuple[SentenceParser, Namespace] | None = None

    def __call__(self, beta: float) -> OnlineGame:
        """Make it; the section is parsed the first time.

        Args:
            beta: temperature, in place of the file's.

        Raises:
            UserError: it cannot be.
        """
        if self._parsed is None:
            self._parsed = _parse(self.model)
        parser, parsed = self._parsed
        now = parsed.clone()
        now.model.init_args.beta = beta
        game: OnlineGame = parser.instantiate(now).model
        return game

    def __reduce__(self) -> tuple[type[Maker], tuple[Block]]:
        """What another process makes it from; it parses anew."""
        return Maker, (self.model,)


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
        maker: makes the game; what is drawn takes the run's seed.
        trainer: arguments for the Trainer.
        size: entries of the game's table, C N N.
        enumerated: whether a query is a product P o, rather than a pair of samples.
    """

    game: str
    beta: float
    where: str
    algorithm: str
    value: float | None
    label: str
    maker: Maker
    trainer: dict[str, Any]
    size: int
    enumerated: bool

    def make(self) -> OnlineGame:
        """The game that it plays.

        Raises:
            UserError: it cannot be made.
        """
        return self.maker(self.beta)


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
                maker = Maker(_model(files[name]["model"], own, blocks, value, where))
                for beta in betas:
                    tried, table = _try(maker, beta, configuration.seeds[0], where)
                    found.append(
                        Contender(
                            game=game,
                            beta=beta,
                            where=f"{game} beta={beta:g}" if len(betas) > 1 else game,
                            algorithm=name,
                            value=value,
                            label=label,
                            maker=maker,
                            trainer=files[name]["trainer"],
                            size=table.numel(),
                            enumerated=tried.rollout.enumerated,
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
    _refuse_other_prompts(path, file.get("data") or {})
    trainer = file.get("trainer") or {}
    arguments = {key: trainer[key] for key in _TRAINER_KEYS if key in trainer}
    try:
        L.Trainer(**arguments, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"{path}, trainer: {error}") from error
    return {"model": model, "trainer": arguments}


def _refuse_other_prompts(path: Path, data: object) -> None:
    """The prompts are the game's, and a file that names others would be read but in part."""
    kind = data.get("class_path", "TablePrompts") if isinstance(data, dict) else data
    if str(kind).split(".")[-1] != "TablePrompts":
        raise UserError(
            f"{path} sets data to {kind}, but a comparison plays the prompts of its games: "
            "set it to TablePrompts"
        )
    if isinstance(data, dict) and data.get("init_args"):
        raise UserError(
            f"{path} sets data.init_args, but a comparison plays all prompts at once: "
            "leave them out"
        )


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
    arguments["policy"] = policy
    for key, given in (("reference", game.reference), ("start", game.start)):
        policy["init_args"].pop(key, None)
        if given is not None:
            _refuse_unused(key, str(policy.get("class_path")), where)
            policy["init_args"][key] = given
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


def _refuse_unused(key: str, policy: str, where: str) -> None:
    """Refuse a game's reference or start that the policy has no use for.

    Raises:
        UserError: the policy takes none.
    """
    known: list[type] = [Policy]
    for cls in known:
        known.extend(cls.__subclasses__())  # the loop goes on over these
    name = policy.rpartition(".")[2]
    found = [cls for cls in known if cls.__name__ == name]  # of another, the parser will know
    if found and not any(key in inspect.signature(cls).parameters for cls in found):
        raise UserError(
            f"{where}: the game gives a {key}, but {name} takes none: leave it out of the game"
        )


def _with_arguments(block: object) -> Block | None:
    """A block that can be added to; it may be a class name alone."""
    if isinstance(block, str):
        return {"class_path": block, "init_args": {}}
    if not isinstance(block, dict):
        return None
    return {**block, "init_args": {**(block.get("init_args") or {})}}


def _parse(model: Block) -> tuple[SentenceParser, Namespace]:
    """A model's section as the command line reads it."""
    parser = SentenceParser(parser_mode="omegaconf+", prog="nlhf compare")
    parser.add_argument("--model", type=OnlineGame)
    try:
        return parser, parser.parse_object({"model": {"class_path": "OnlineGame", **model}})
    except UserError as error:
        raise UserError(str(error).removeprefix("--")) from error
    except OmegaConfBaseException as error:
        raise UserError(f"an interpolation fails: {error}") from error


def _try(maker: Maker, beta: float, seed: int, where: str) -> tuple[OnlineGame, Tensor]:
    """Make a game; what it cannot do is found now. Returns the game and its table."""
    L.seed_everything(seed, verbose=False)
    try:
        game = maker(beta)
        table = game.oracle.table
        if table is None:
            raise UserError(
                f"{type(game.oracle).__name__} holds no table of preferences, which exact metrics "
                "need: compare on games that do"
            )
        game.log_policy()
    except (ValueError, TypeError, OSError, ImportError, MisconfigurationException) as error:
        raise UserError(f"{where}: {error}") from error
    return game, table
