"""``nlhf fit | validate | test | predict``: LightningCLI, with its traps taken out."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from omegaconf.errors import OmegaConfBaseException

# Imported so that short class names resolve on the command line and in YAML files.
import nlhf_zoo.algorithms
import nlhf_zoo.callbacks
import nlhf_zoo.oracles
import nlhf_zoo.policies
import nlhf_zoo.realisation
import nlhf_zoo.rollout
from nlhf_zoo.callbacks import GameProgressBar, ResumeState
from nlhf_zoo.data.prompts import TablePrompts
from nlhf_zoo.errors import UserError
from nlhf_zoo.online_game import OnlineGame


class GameArgumentParser(LightningArgumentParser):
    """A parser whose errors are one sentence, not fifty lines of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong.

        Raises:
            UserError: always.
        """
        raise UserError(message) from ex


class SaveGameConfig(SaveConfigCallback):
    """Saves ``config.yaml`` in the run's folder, and the hyper-parameters beside the final metrics in TensorBoard."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save for `fit` alone: an evaluation must not overwrite what the run was made from."""
        if stage == "fit" and trainer.log_dir is not None:
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the loggers the model's configuration, flat."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))
        flat = dict(_flatten({"model": config["model"], "seed_everything": config["seed_everything"]}))
        for logger in trainer.loggers:
            if isinstance(logger, L.pytorch.loggers.TensorBoardLogger):
                figures = {"hp/exploitability": math.nan, "hp/exploitability_max": math.nan}
                logger.log_hyperparams(flat, figures)
            else:
                logger.log_hyperparams(flat)


class GameCLI(LightningCLI):
    """LightningCLI for games: OnlineGame by default, one-sentence errors, resumes that refuse another configuration."""

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
            with warnings.catch_warnings():
                # `main` is given the arguments that came from the process; there are no others to confuse them with.
                warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
                super().parse_arguments(parser, args)
        except OmegaConfBaseException as error:
            raise UserError(f"an interpolation in the configuration fails: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Do not take model arguments from a checkpoint.

        LightningCLI would replace the configuration's, even the algorithm, by those in the file, and say nothing.
        """

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint, and refuse one that another configuration made."""
        config = self.config[self.subcommand]
        requested = config.get("ckpt_path")
        if not requested:
            return
        runs = _runs_folder(config)
        checkpoint = _last_checkpoint(runs) if requested == "last" else Path(requested)
        if not checkpoint.is_file():
            raise UserError(f"ckpt_path {requested} is no file: give a checkpoint, or `last` for the last run's")
        config["ckpt_path"] = str(checkpoint)
        run = checkpoint.absolute().parent.parent
        if runs is not None and run.parent == runs.absolute() and (found := re.fullmatch(r"version_(\d+)", run.name)):
            config["trainer"]["logger"]["init_args"]["version"] = int(found[1])  # go on in that run's folder
        self._dump_config()
        _refuse_other_config(run / "config.yaml", self.config_dump)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Without the progress bar where none is wanted: Lightning would refuse ours."""
        if self.config[self.subcommand]["trainer"].get("enable_progress_bar") is False:
            callbacks = self.trainer_defaults["callbacks"]
            self.trainer_defaults["callbacks"] = [c for c in callbacks if not isinstance(c, GameProgressBar)]
        return super().instantiate_trainer(**kwargs)

    def instantiate_classes(self) -> None:
        """Make the parts; what they refuse is the user's error.

        Raises:
            UserError: a part refuses its arguments.
        """
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, OSError, MisconfigurationException, ImportError) as error:
            raise UserError(str(error) or type(error).__name__) from error


def run(args: Sequence[str]) -> None:
    """Run one command of the Trainer.

    Args:
        args: the command (fit, validate, test, predict) and its options.

    Raises:
        UserError: a mistake of the user's making.
    """
    torch.set_float32_matmul_precision("highest")  # log-probabilities must not lose digits to tf32
    try:
        GameCLI(
            seed_everything_default=0,
            trainer_defaults={
                "callbacks": [ResumeState(), GameProgressBar()],
                "max_epochs": -1,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
                "accelerator": "cpu",
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
        raise UserError(str(error)) from error


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _runs_folder(config: Namespace) -> Path | None:
    """The folder that holds the versions of this run, where the logger is TensorBoard's."""
    logger = config["trainer"].get("logger")
    if isinstance(logger, Namespace) and "init_args" in logger and logger.class_path.endswith("TensorBoardLogger"):
        return Path(logger.init_args.save_dir) / (logger.init_args.name or "")
    return None


def _last_checkpoint(runs: Path | None) -> Path:
    if runs is None:
        raise UserError("ckpt_path last needs trainer.logger to be a TensorBoardLogger, or give the checkpoint's file")
    versions = []
    for folder in runs.glob("version_*"):
        number = re.fullmatch(r"version_(\d+)", folder.name)
        if number and (folder / "checkpoints" / "last.ckpt").is_file():
            versions.append(int(number[1]))
    if not versions:
        raise UserError(f"ckpt_path is last, but no run in {runs} has a checkpoint: leave it out to start afresh")
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
                f"the checkpoint's run had {key} = {was.get(key)}, the configuration has {now.get(key)}: "
                f"resume with {path}, or start afresh without ckpt_path"
            )


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flatten(part, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, (str, int, float, bool)) else str(value)


