"""Combinations of model, data and Trainer that `nlhf fit` refuses before it computes or writes.

Prompts and pairs are read here, for what is wrong with their rows must be said by then, too. What
is wrong with one part, or with the parts of a game, they refuse themselves and
`game/compatibility.py` does; checkpoints and other configurations are refused in `resuming.py`.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.strategies import ModelParallelStrategy

from nlhf_zoo.algorithms import torch_optimizers as optimizers
from nlhf_zoo.callbacks import Budget, ExactMetrics, GameCheckpoint, ResponseTable
from nlhf_zoo.cli import limits
from nlhf_zoo.cli.parser import as_user_errors
from nlhf_zoo.data.pairs import PreferencePairs
from nlhf_zoo.data.prompts import TablePrompts, table_prompts
from nlhf_zoo.data.text_prompts import TextPrompts
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.compatibility import check_precision
from nlhf_zoo.game.lightning_internals import is_trial
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.sharding import of_no_use, refuse_strategy
from nlhf_zoo.oracles import HumanOracle
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy
from nlhf_zoo.preference_models import PreferenceModel


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]  # its connector sets them


def refuse_endless(trainer: L.Trainer, data: L.LightningDataModule | None) -> None:
    """Refuse a run that nothing would end."""
    epochs_end = not isinstance(data, TablePrompts | TextPrompts) or isinstance(
        trainer.limit_train_batches, int
    )
    ends = [
        is_trial(trainer),
        trainer.max_steps != -1,
        epochs_end and trainer.max_epochs not in (None, -1),
    ]
    for callback in _callbacks(trainer):
        ends.append(isinstance(callback, EarlyStopping | Timer))
        if isinstance(callback, Budget):
            ends.append((callback.rounds, callback.queries) != (None, None))
    if not any(ends):
        raise UserError(
            "nothing would end this run: give it a budget, as in "
            "--trainer.callbacks+ Budget --trainer.callbacks.queries 2000"
        )


def refuse_strategy_name(strategy: object, model: str) -> None:
    """Refuse a strategy that no game runs under, by its name alone, before a model is loaded.

    Args:
        strategy: as the configuration has it.
        model: class path.

    Raises:
        UserError: what to take in its place.
    """
    given = strategy.get("class_path") if isinstance(strategy, Namespace) else strategy
    name, kind = str(given).rpartition(".")[2], resolve_name(model)
    if _FOR_NO_GAME.fullmatch(name) and inspect.isclass(kind) and issubclass(kind, OnlineGame):
        raise UserError(of_no_use(name))


_FOR_NO_GAME = re.compile(r"(xla_)?fsdp(_.*)?|deepspeed.*|(FSDP|DeepSpeed|ModelParallel)Strategy")


def refuse_misfits(
    trainer: L.Trainer, game: OnlineGame, data: L.LightningDataModule | None
) -> None:
    """Refuse parts that do not fit the trainer."""
    refuse_strategy(trainer.strategy, game.policy)
    _say_prompts(trainer, game, data)
    refuse_optimizer(trainer, game)
    check_precision(trainer.precision)
    closed_form = game.realisation.closed_form
    if closed_form and trainer.world_size > 1:
        raise UserError(
            f"the closed form runs in one process, not in {trainer.world_size}: "
            "set trainer.devices to 1"
        )
    keeps_votes = any(isinstance(one, GameCheckpoint) for one in _callbacks(trainer))
    for part in game.oracle.modules():
        if isinstance(part, HumanOracle) and (is_trial(trainer) or not keeps_votes):
            _ = part.file  # which refuses to be nowhere
    for callback in _callbacks(trainer):
        if isinstance(callback, ExactMetrics | ResponseTable):
            callback.check(game)
    if isinstance(data, TextPrompts):
        data.load(game.policy, trainer.world_size, shown=trainer.is_global_zero)
    if isinstance(data, TablePrompts):
        total = len(table_prompts(game.oracle))
        if closed_form and data.size(total, trainer.world_size) != total:
            raise UserError(
                "the closed form plays all prompts at once: set data.batch_size to null"
            )


def _say_prompts(trainer: L.Trainer, game: OnlineGame, data: L.LightningDataModule | None) -> None:
    """Tell a game how many prompts a rollout has that serves several gradient steps.

    Raises:
        UserError: its minibatches do not divide them.
    """
    if isinstance(data, TablePrompts):
        total, evenly = len(table_prompts(game.oracle)), game.reuse is not None
        size = data.size(total, trainer.world_size, evenly) // trainer.world_size
    elif isinstance(data, TextPrompts):
        size = data.batch_size
    else:
        return
    game.rollout_prompts = size * trainer.accumulate_grad_batches
    if game.reuse is not None:
        game.reuse.schedule(game, game.rollout_prompts)


def refuse_optimizer(trainer: L.Trainer, module: OnlineGame | PreferenceModel) -> None:
    """Refuse an optimiser or a schedule that cannot be made, or fails in its first step."""
    with as_user_errors("--model.optimizer or --model.lr_scheduler: "):
        made = module.configure_optimizers()
    if isinstance(module, OnlineGame) and module.realisation.closed_form:
        return  # which takes none
    groups = (made["optimizer"] if isinstance(made, dict) else made).param_groups
    if all(group.get("initial_lr", group.get("lr")) == 0 for group in groups):
        raise UserError("the learning rate of model.optimizer is 0: nothing would be learnt")
    parameters = [p for p in module.parameters() if p.requires_grad]
    # Where there are several processes, devices are theirs.
    device = trainer.strategy.root_device
    if trainer.world_size == 1 or device.type == "cpu":
        makers = (module.optimizer, module.lr_scheduler)
        optimizers.refuse_failing_steps(
            parameters, *makers, device, limits.planned_steps(trainer, module)
        )


def refuse_unlisted(game: OnlineGame) -> None:
    """Refuse to print probabilities of responses of a language model that nobody has listed."""
    if isinstance(game.policy, CausalLMPolicy) and game.oracle.action_names is None:
        raise UserError(
            "nlhf predict prints the probability of each listed response, and "
            f"{type(game.oracle).__name__} lists none: take an oracle that does, such as "
            "ListedResponses, or draw responses from what `nlhf export` writes"
        )


def refuse_other_data(trainer: L.Trainer, data: L.LightningDataModule | None) -> None:
    """Refuse what a preference model cannot be trained on or under, and read the pairs."""
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise UserError("a PreferenceModel is not sharded: set trainer.strategy to ddp")
    if isinstance(data, TablePrompts | TextPrompts):
        raise UserError(
            "a PreferenceModel trains on pairs of responses: set data to PreferencePairs"
        )
    if isinstance(data, PreferencePairs):
        data.load(trainer.world_size)


def refuse_unwritable(trainer: L.Trainer) -> None:
    """Refuse folders that cannot be written to."""
    folders: list[Any] = [logger.save_dir for logger in trainer.loggers]
    folders = folders or [trainer.default_root_dir]
    folders += [c.dirpath for c in _callbacks(trainer) if isinstance(c, GameCheckpoint)]
    for folder in folders:
        if folder is None:
            continue
        path = Path(folder).absolute()
        there = next(above for above in (path, *path.parents) if above.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise UserError(
                f"{folder} cannot be written to, because {there} is no folder or forbids it"
            )
