"""The entries of a comparison: each algorithm on each game, made once before anything runs."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace

from nlhf_zoo.cli.compare.configuration import AlgorithmBlocks, Block, load_yaml, require
from nlhf_zoo.cli.limits import refuse_numbers
from nlhf_zoo.cli.parser import SentenceParser, as_user_errors
from nlhf_zoo.cli.signatures import options_of
from nlhf_zoo.errors import UserError

# Its module also imports what short class names in the files stand for.
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.policies.finite import FinitePolicy

# What a file says of its Trainer that changes what is learnt; the rest is the comparison's.
_TRAINER_KEYS = (
    "accelerator",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "accumulate_grad_batches",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """An algorithm with its arguments, on a game at one temperature."""

    game: str  # its name in the comparison
    beta: float
    where: str  # the game's name, with beta where there are several: names a folder
    algorithm: str  # its name in the comparison
    label: str  # that name, with the values of the arguments that are swept
    make: Callable[[], OnlineGame]  # what is drawn takes the run's seed
    trainer: dict[str, Any]  # arguments of the Trainer
    section: str  # the section `model` of a file that would play it
    content: str  # a checksum of the game's table and a table's reference, which may be files
    size: int  # entries of the game's table, C N N
    enumerated: bool  # whether a query is a product P o, rather than a pair of samples
    kind: str  # the name of the algorithm's class
    payoff_range: float = 1.0  # twice the largest distance of a payoff from 1/2


def read_entries(
    games: Mapping[str, Block],
    algorithms: Mapping[str, AlgorithmBlocks],
    betas: list[float] | None,
    seed: int,
    report: Callable[[], Any],
) -> list[Entry]:
    """Every entry of a comparison, each made once, with a seed, to see that it can be.

    Without betas they play at the one of all files; `report` is called after each of them.
    """
    files = {name: _read(name, own.config) for name, own in algorithms.items()}
    betas = betas or [_common_beta({name: model for name, (model, _) in files.items()})]
    entries: list[Entry] = []
    for (game, parts), (name, own) in product(games.items(), algorithms.items()):
        model, trainer = files[name]
        for choice in own.choices:
            label = name + _in_words(choice)
            where = f"{label} on {game} ({own.config})"
            section = yaml.safe_dump(
                _with_blocks(model, own, parts, choice, where), sort_keys=False
            )
            for beta in betas:
                place = f"{game} beta={beta:g}" if len(betas) > 1 else game
                twice = any((entry.where, entry.label) == (place, label) for entry in entries)
                rule = "name algorithms, betas and values apart"
                require(not twice, f"{label} on {place} stands twice: {rule}")
                make = partial(made_game, section, beta)
                played = _try(make, seed, where)
                entries.append(
                    Entry(game, beta, place, name, label, make, trainer, section, *played)
                )
                report()
    return sorted(entries, key=lambda e: ([*games].index(e.game), betas.index(e.beta)))


def _in_words(choice: Mapping[str, float]) -> str:
    """What of a sweep is played, as it stands behind an algorithm's name."""
    values = [f"{argument.split('.')[-1]}={value:g}" for argument, value in choice.items()]
    return f" ({', '.join(values)})" if values else ""


def _read(name: str, path: Path) -> tuple[Block, dict[str, Any]]:
    """The model and the Trainer's arguments of an algorithm's file."""
    require(path.is_file(), f"algorithms.{name}.config: there is no file {path}")
    file = load_yaml(path)
    model: Any = file.get("model") if isinstance(file, dict) else None
    complete = isinstance(model, dict) and isinstance(model.get("init_args"), dict)
    rule = "give a complete file for `nlhf fit`"
    require(complete, f"{path} has no section `model` with init_args: {rule}")
    _refuse_other_prompts(path, file.get("data") or {})
    trainer = file.get("trainer") or {}
    arguments = {key: trainer[key] for key in _TRAINER_KEYS if key in trainer}
    with as_user_errors(f"{path}, trainer: "):
        refuse_numbers(arguments, trains=True)
        L.Trainer(**arguments, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return model, arguments


def _refuse_other_prompts(path: Path, data: object) -> None:
    """The prompts are the game's, and a file that names others would be read but in part."""
    block = _with_arguments(data) or {"class_path": data, "init_args": {}}
    kind = block.get("class_path", "TablePrompts")
    rule = "a comparison plays the prompts of its games: set it to TablePrompts"
    own = str(kind).split(".")[-1] == "TablePrompts"
    require(own, f"{path} sets data to {kind}, but {rule}")
    rule = "a comparison plays all prompts at once: leave them out"
    require(not block["init_args"], f"{path} sets data.init_args, but {rule}")


def _common_beta(models: dict[str, Block]) -> float:
    """The beta of all files; they must play one game."""
    betas = {name: model["init_args"].get("beta") for name, model in models.items()}
    first, beta = next(iter(betas.items()))
    for name, other in betas.items():
        both = f"{first} plays at beta = {beta} and {name} at beta = {other}"
        require(other == beta, f"{both}, which are two games: set betas")
    nowhere = "no beta is given, neither in the algorithms' files nor here: set betas"
    require(isinstance(beta, (int, float)), nowhere)
    return float(beta)


def _with_blocks(
    model: Block, own: AlgorithmBlocks, game: Block, choice: Mapping[str, float], where: str
) -> Block:
    """The section `model` of an algorithm's file, with the blocks of this game and comparison."""
    model = copy.deepcopy(model)
    arguments = model["init_args"]
    policy = _with_arguments(arguments.get("policy"))
    if policy is None:
        raise UserError(f"{where}: the file has no model.init_args.policy")
    arguments |= {"oracle": game["oracle"], "policy": policy, **own.blocks}
    for key in ("reference", "start"):
        policy["init_args"].pop(key, None)
        if game.get(key) is not None:
            name = str(policy.get("class_path")).rpartition(".")[2]
            options = options_of(name)
            taken = options is None or key in options  # of a user's own class the parser knows
            rule = f"{name} takes none: leave it out of the game"
            require(taken, f"{where}: the game gives a {key}, but {rule}")
            policy["init_args"][key] = game[key]
    for swept, value in choice.items():
        key, _, argument = swept.partition(".")
        block = _with_arguments(arguments.get(key))
        if block is None:
            raise UserError(f"{where}: the sweep is over {swept}, but there is no {key}")
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


def made_game(model: str, beta: float) -> OnlineGame:
    """Make a game at a temperature from the section `model` of a file, in any process."""
    parser, parsed = _parse(model)
    arguments = parsed.clone()
    arguments.model.init_args.beta = beta
    game: OnlineGame = parser.instantiate(arguments).model
    return game


@cache
def _parse(model: str) -> tuple[SentenceParser, Namespace]:
    """A model's section as the command line reads it."""
    parser = SentenceParser(parser_mode="omegaconf+", prog="nlhf compare")
    parser.add_argument("--model", type=OnlineGame)
    section = {"class_path": "OnlineGame", **yaml.safe_load(model)}
    return parser, parser.parse_object({"model": section})


def _try(
    make: Callable[[], OnlineGame], seed: int, where: str
) -> tuple[str, int, bool, str, float]:
    """Make a game to see that it can be.

    Returns:
        the checksum of its content, its table's size, whether it is enumerated, its
        algorithm's class, and the range of its payoffs.
    """
    L.seed_everything(seed, verbose=False)
    with as_user_errors(f"{where}: "):
        game = make()
        table = game.oracle.table
        if table is None:
            raise UserError(
                f"{type(game.oracle).__name__} holds no table of preferences, which exact metrics "
                "need: compare on games that do"
            )
        game.log_policy()
        game.configure_optimizers()
        content = hashlib.sha256(table.cpu().numpy().tobytes())
        if isinstance(game.policy, FinitePolicy):
            content.update(game.log_policy("reference").cpu().numpy().tobytes())
    kind = type(game.algorithm).__name__
    payoff_range = 2 * game.oracle.payoff_bound
    return content.hexdigest(), table.numel(), game.rollout.enumerated, kind, payoff_range
