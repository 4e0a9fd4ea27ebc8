"""``nlhf fit | validate | test | predict``: LightningCLI, with its traps taken out."""

from __future__ import annotations

import csv
import logging
import math
import os
import pickle
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import isabstract
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from omegaconf.errors import OmegaConfBaseException

# Imported so that short class names resolve on the command line and in YAML files.
from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.callbacks import (
    Budget,
    ExactMetrics,
    GameCheckpoint,
    GameProgressBar,
    QueryLog,
    ResumeState,
)
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import UserError
from nlhf_zoo.online_game import OnlineGame
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.policies import Policy, Reference
from nlhf_zoo.realisation import Realisation
from nlhf_zoo.rollout import Rollout


class GameArgumentParser(LightningArgumentParser):
    """A parser whose errors are one sentence, not fifty lines of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong.

        Raises:
            UserError: always.
        """
        raise UserError(shorten(message)) from ex


class SaveGameConfig(SaveConfigCallback):
    """Saves ``config.yaml`` in the run's folder, and hyper-parameters beside the final metrics."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save for `fit` alone: an evaluation must not overwrite what the run was made from."""
        if stage == "fit" and trainer.log_dir is not None:
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the loggers the model's configuration, flat."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))
        flat = dict(
            _flatten({"model": config["model"], "seed_everything": config["seed_everything"]})
        )
        for logger in trainer.loggers:
            if isinstance(logger, L.pytorch.loggers.TensorBoardLogger):
                figures = {"hp/exploitability": math.nan, "hp/exploitability_max": math.nan}
                logger.log_hyperparams(flat, figures)
            else:
                logger.log_hyperparams(flat)


class GameCLI(LightningCLI):
    """LightningCLI for games: OnlineGame by default, errors in one sentence, exact resumes."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """An OnlineGame on a table unless told otherwise."""
        parser.set_defaults(
            {
                "model": {"class_path": _path(OnlineGame)},
                "data": {"class_path": _path(TablePrompts)},
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; a broken interpolation is the user's error like any other.

        Raises:
            UserError: the arguments cannot be parsed.
        """
        try:
            super().parse_arguments(parser, args)
        except OmegaConfBaseException as error:
            raise UserError(f"an interpolation in the configuration fails: {error}") from error
        except UserError:
            raise
        except ValueError as error:  # by --print_config, of what YAML cannot hold
            raise UserError(shorten(str(error))) from error

    def _set_seed(self) -> None:
        """Set it; one out of bounds is the user's error.

        Raises:
            UserError: it is out of bounds.
        """
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"--seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Do not take model arguments from a checkpoint.

        LightningCLI would replace the configuration's, even the algorithm, by those in the file,
        and say nothing.
        """

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint, and refuse one that another configuration made.

        Raises:
            UserError: it cannot be resumed.
        """
        self._resumed: dict[str, Any] = {}
        config = self.config[self.subcommand]
        requested = config.get("ckpt_path")
        if not requested:
            return
        runs = _runs_folder(config)
        checkpoint = _last_checkpoint(config, runs) if requested == "last" else Path(requested)
        if not checkpoint.is_file():
            raise UserError(
                f"ckpt_path {requested} is no file: give a checkpoint, or `last` for the last run's"
            )
        run = checkpoint.absolute().parent.parent
        self._dump_config()
        _refuse_other_config(run / "config.yaml", self.config_dump)
        _refuse_other_file(checkpoint)
        self._resumed["ckpt_path"] = str(checkpoint)
        found = re.fullmatch(r"version_(\d+)", run.name)
        if found and runs is not None and run.parent == runs.absolute():
            # Go on in that run's folder.
            self._resumed["trainer.logger.init_args.version"] = int(found[1])

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Without the progress bar where none is wanted: Lightning would refuse ours."""
        if self.config[self.subcommand]["trainer"].get("enable_progress_bar") is False:
            callbacks = self.trainer_defaults["callbacks"]
            self.trainer_defaults["callbacks"] = [
                c for c in callbacks if not isinstance(c, GameProgressBar)
            ]
        return super().instantiate_trainer(**kwargs)

    def instantiate_classes(self) -> None:
        """Make the parts; what they refuse is the user's error.

        Raises:
            UserError: a part refuses its arguments.
        """
        config = self.config[self.subcommand]
        written = {key: config.get(key) for key in self._resumed} | {"ckpt_path": None}
        for key, value in self._resumed.items():
            config[key] = value
        try:
            super().instantiate_classes()
        except UserError:
            raise
        except (ValueError, TypeError, OSError, MisconfigurationException, ImportError) as error:
            raise UserError(shorten(str(error)) or type(error).__name__) from error
        finally:
            for key, value in written.items():  # config.yaml starts such a run, and resumes none
                config[key] = value

    def before_fit(self) -> None:
        """Refuse what could not end well, before anything is computed or written.

        Raises:
            UserError: the parts do not fit the trainer.
        """
        _refuse_endless(self.trainer, self.datamodule)
        if isinstance(self.model, OnlineGame):
            _refuse_misfits(self.trainer, self.model, self.datamodule)
        if not _is_trial(self.trainer):
            _refuse_unwritable(self.trainer)

    def predict(self, **kwargs: Any) -> None:
        """Print the probability of each response as CSV, where the responses can be listed."""
        log_probs = self.trainer.predict(**kwargs)
        if not (isinstance(self.model, OnlineGame) and log_probs and self.trainer.is_global_zero):
            return
        names = self.model.oracle.names
        table = csv.writer(sys.stdout)
        table.writerow(("prompt", "response", "probability"))
        for prompt, row in enumerate(torch.cat([*log_probs]).exp().tolist()):
            for response, probability in enumerate(row[: len(names[prompt])] if names else row):
                name = names[prompt][response] if names else response
                table.writerow((prompt, name, probability))

    def after_fit(self) -> None:
        """Say where everything lies."""
        folder = self.trainer.log_dir  # asks all processes
        if self.trainer.is_global_zero and not _is_trial(self.trainer):
            print(f"Logs, metrics and checkpoint: {folder}")


def run(args: Sequence[str]) -> None:
    """Run one command of the Trainer.

    Args:
        args: the command (fit, validate, test, predict) and its options.

    Raises:
        UserError: a mistake of the user's making.
    """
    _refuse_bad_files(args)
    torch.set_float32_matmul_precision("highest")  # log-probabilities must not lose digits to tf32
    try:
        with quiet():
            GameCLI(
                seed_everything_default=0,
                trainer_defaults={
                    "callbacks": [ResumeState(), QueryLog(), GameProgressBar()],
                    "max_epochs": -1,
                    "num_sanity_val_steps": 0,
                    "use_distributed_sampler": False,
                    "enable_model_summary": False,
                },
                save_config_callback=SaveGameConfig,
                save_config_kwargs={"overwrite": True},
                parser_class=GameArgumentParser,
                parser_kwargs={"parser_mode": "omegaconf+", "prog": "nlhf"},
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=list(args),
            )
    except MisconfigurationException as error:
        raise UserError(shorten(str(error))) from error
    except OSError as error:  # a full disk, a folder that may not be written to
        raise UserError(
            f"{error.filename or 'input or output'}: {error.strerror or error}"
        ) from error
    except RuntimeError as error:
        if not str(error).startswith("Error(s) in loading state_dict"):
            raise
        raise UserError(f"the checkpoint does not fit the model: {shorten(str(error))}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning says nothing about seeds, devices, loaders and its other products."""
    names = ("lightning.pytorch", "lightning.fabric")
    loggers = [logging.getLogger(n + end) for n in names for end in ("", ".utilities.rank_zero")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # `main` is given the arguments that came from the process: there are no others
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            # a table of games needs no worker processes
            warnings.filterwarnings("ignore", message=r"The '\w+_dataloader' does not have many")
            # https://github.com/Lightning-AI/pytorch-lightning/issues/21326
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
            # a run that resumes finds its own checkpoint
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not")
            # in closed form nothing is optimised, and what is saved is what was played
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optim")
            # and one that was moved lies elsewhere
            warnings.filterwarnings("ignore", message="The dirpath has changed")
            warnings.filterwarnings("ignore", message="GPU available but not used")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _runs_folder(config: Namespace) -> Path | None:
    """The folder that holds the versions of this run, where the logger is TensorBoard's."""
    logger = config["trainer"].get("logger")
    if (
        isinstance(logger, Namespace)
        and "init_args" in logger
        and logger.class_path.endswith("TensorBoardLogger")
    ):
        return Path(logger.init_args.save_dir) / (logger.init_args.name or "")
    return None


def _last_checkpoint(config: Namespace, runs: Path | None) -> Path:
    if runs is None:
        raise UserError(
            "ckpt_path last needs trainer.logger to be a TensorBoardLogger: "
            "else give the checkpoint's file"
        )
    version = config["trainer.logger.init_args"].get("version")
    if version is not None:
        folder = runs / (version if isinstance(version, str) else f"version_{version}")
        return folder / "checkpoints" / "last.ckpt"
    versions = []
    for folder in runs.glob("version_*"):
        number = re.fullmatch(r"version_(\d+)", folder.name)
        if number and (folder / "checkpoints" / "last.ckpt").is_file():
            versions.append(int(number[1]))
    if not versions:
        raise UserError(
            f"ckpt_path is last, but no run in {runs} has a checkpoint: "
            "leave it out to start afresh"
        )
    return runs / f"version_{max(versions)}" / "checkpoints" / "last.ckpt"


def _refuse_other_config(path: Path, config: dict[str, Any]) -> None:
    if not path.is_file():
        return
    saved = yaml.safe_load(path.read_text())
    kept = ("model", "data", "seed_everything")
    was = dict(_flatten({key: saved.get(key) for key in kept}))
    now = dict(_flatten({key: config.get(key) for key in kept}))
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            raise UserError(
                f"the checkpoint's run had {key} = {was.get(key)}, "
                f"the configuration has {now.get(key)}: resume with {path}, "
                "or start afresh without ckpt_path"
            )


def _refuse_bad_files(args: Sequence[str]) -> None:
    """Refuse configuration files that hold no YAML; jsonargparse would not say which.

    Raises:
        UserError: one does not.
    """
    given = [value for flag, value in pairwise(args) if flag in ("-c", "--config")]
    given += [arg.removeprefix("--config=") for arg in args if arg.startswith("--config=")]
    for path in filter(os.path.isfile, given):
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.MarkedYAMLError as error:
            line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UserError(f"--config {path} is not YAML: {error.problem}{line}") from error
        except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
            raise UserError(f"--config {path} is not text in UTF-8: save it as UTF-8") from error
        if not isinstance(content, dict):
            raise UserError(f"--config {path} holds no options: write them as `name: value`")


def _refuse_other_file(path: Path) -> None:
    """Refuse what is no checkpoint, or half of one; mapped, so that large ones are not read twice.

    Raises:
        UserError: it is none.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        whole = isinstance(content, dict) and "state_dict" in content
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError):
        whole = False
    if not whole:
        raise UserError(f"ckpt_path {path} is no checkpoint, or not a whole one: give another file")


def _is_trial(trainer: L.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # lightning sets it elsewhere


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]  # likewise


def _refuse_endless(trainer: L.Trainer, data: L.LightningDataModule | None) -> None:
    """Refuse a run that nothing would end.

    Raises:
        UserError: there is neither a budget nor another limit.
    """
    epochs_end = not isinstance(data, TablePrompts) or isinstance(trainer.limit_train_batches, int)
    ends = [
        _is_trial(trainer),
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


def _refuse_misfits(
    trainer: L.Trainer, game: OnlineGame, data: L.LightningDataModule | None
) -> None:
    """Refuse parts that do not fit the trainer.

    Raises:
        UserError: one does not.
    """
    try:
        game.configure_optimizers()
    except (ValueError, TypeError) as error:
        raise UserError(f"--model.optimizer or --model.lr_scheduler: {error}") from error
    closed_form = game.realisation.closed_form
    if closed_form and trainer.world_size > 1:
        raise UserError(
            f"the closed form runs in one process, not in {trainer.world_size}: "
            "set trainer.devices to 1"
        )
    for callback in _callbacks(trainer):
        if isinstance(callback, ExactMetrics):
            callback.check(game)
    if isinstance(data, TablePrompts) and game.oracle.support is not None:
        total = len(game.oracle.support)
        if data.size(total, trainer.world_size) != total and closed_form:
            raise UserError(
                "the closed form plays all prompts at once: set data.batch_size to null"
            )


def _refuse_unwritable(trainer: L.Trainer) -> None:
    """Refuse folders that cannot be written to.

    Raises:
        UserError: one cannot.
    """
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


# Where it is wrong: as jsonargparse says it, and as `shorten` has said it of a part of a part.
_KEY = r'(?:Parser key "([^"]+)"|(?:argument )?--([\w.]+)):\s*'
# What jsonargparse says of a value beside what is wrong with it.
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:$|Subclass types expect"
    r"|a class path \(str\)|a dict with|Expected a path but|Given value type: |Given value: "
)
_KINDS = {"NoneType": "null", "str": "text", "int": "a whole number", "float": "a number"}


def shorten(message: str) -> str:
    """What jsonargparse says, in one sentence: the option, and the innermost cause.

    Args:
        message: of many lines, with a tree of everything that was tried.
    """
    keys = [one or other for one, other in re.findall(_KEY, message)]
    option = f"--{'.'.join(keys)}: " if keys else ""
    lines = [re.sub(rf"^(\s|- )*({_KEY})*", "", line) for line in message.splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)]
    if missing := re.search(r"Expected a dot import path string: (.*)", message):
        return f"{option}there is no class {missing[1]!r}{_choices(keys[-1:])}"
    causes = [line for line in lines if not re.match("Expected an? |Not a valid subclass", line)]
    if causes:
        return option + " ".join(causes)
    kinds = re.findall(
        r"Expected an? (?:<class '(?:[\w.]*\.)?(\w+)'>|typing.Literal\[(.*?)\])", message
    )
    value = re.search(r"(?:Given|Got) value: (.*)", message)
    if kinds and value:
        expected = " or ".join(_KINDS.get(kind, kind) or literals for kind, literals in kinds)
        return f"{option}expected {expected}, but got {value[1]!r}"
    return option + " ".join(lines)


def _choices(keys: list[str]) -> str:
    """The classes that stand for a part of the game, by the last key of an option."""
    base = {
        "algorithm": PolicyOptimizer,
        "inner": PolicyOptimizer,
        "oracle": PreferenceOracle,
        "policy": Policy,
        "reference": Reference,
        "start": Reference,
        "rollout": Rollout,
        "realisation": Realisation,
    }.get(keys[0] if keys else "")
    names: set[str] = set()
    todo: list[type] = [] if base is None else base.__subclasses__()
    for cls in todo:
        todo.extend(cls.__subclasses__())  # the loop goes on over these
        if cls.__module__.startswith("nlhf_zoo.") and not (isabstract(cls) or cls.__subclasses__()):
            names.add(cls.__name__)
    return f": choose one of {', '.join(sorted(names))}" if names else ""


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flatten(part, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, (str, int, float, bool)) else str(value)
