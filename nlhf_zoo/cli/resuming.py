"""A run's configuration and its checkpoint: saved, found again, refused where they do not fit."""

from __future__ import annotations

import inspect
import json
import math
import os
import platform
import re
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from nlhf_zoo import __version__
from nlhf_zoo.callbacks import (
    Budget,
    CollapseWatch,
    Dashboard,
    ExactMetrics,
    GameCheckpoint,
    GameFigures,
    HangWatch,
)
from nlhf_zoo.callbacks.checkpoint import PREVIOUS
from nlhf_zoo.callbacks.dashboard import final_tags
from nlhf_zoo.cli.files import read_config
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.metrics.processes import run_folder

VERSIONS = "versions.json"  # of a run's folder
_PACKAGES = ("nlhf_zoo", "torch", "lightning", "transformers", "peft", "torchmetrics", "numpy")
_ORACLE = "model.init_args.oracle."
_LIGHTNING_LOGS = "lightning_logs"  # the folder of a run that nobody has named
# Of which a run has one.
_ONE = (Budget, CollapseWatch, Dashboard, ExactMetrics, GameCheckpoint, GameFigures, HangWatch)


class SaveGameConfig(SaveConfigCallback):
    """Saves ``config.yaml`` in the run's folder, and hyper-parameters beside the final metrics."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save for `fit` alone: an evaluation must not overwrite what the run was made from.

        The file is written beside its place and renamed: a resumed run must not lose it to a kill.
        """
        folder = run_folder(trainer)  # asks all processes
        if stage != "fit" or folder is None:
            return
        if trainer.is_global_zero:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with written(Path(folder) / self.config_filename) as beside:
                text = self.parser.dump(self.config, skip_none=False)
                beside.write_text(text, encoding="utf-8")
            keep_versions(Path(folder) / VERSIONS)
            self.save_config(trainer, pl_module, stage)
        trainer.strategy.barrier()

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the loggers the model's configuration, flat."""
        if not trainer.loggers:
            return
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))
        flat = dict(
            flatten({"model": config["model"], "seed_everything": config["seed_everything"]})
        )
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                names = final_tags(trainer, pl_module)
                logger.log_hyperparams(flat, dict.fromkeys(names, math.nan) if names else None)
            else:
                logger.log_hyperparams(flat)


def keep_versions(path: Path) -> None:
    """Write which versions a run is played by, behind those that it was played by before."""
    now = versions_now()
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = []
    before = before if isinstance(before, list) else []
    if before[-1:] != [now]:
        with written(path) as beside:
            beside.write_text(json.dumps([*before, now], indent=1) + "\n", encoding="utf-8")


def versions_now() -> dict[str, str]:
    """The versions of Python and of what figures depend on, by package."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    if package == "nlhf_zoo":  # which may be run from its sources
        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def keep_last(trainer: Namespace) -> None:
    """Of several budgets in a Trainer's configuration leave the last, and so of others of ours.

    `--trainer.callbacks+ Budget` adds one to a file's, and replaces it so. A run goes by its last
    budget, which alone `config.yaml` shall list; two that have a state Lightning would refuse.
    """
    kinds = kinds_of_callbacks(trainer)
    if kinds:
        trainer["callbacks"] = [
            part
            for number, (kind, part) in enumerate(zip(kinds, trainer["callbacks"], strict=True))
            if not (kind in _ONE and kind in kinds[number + 1 :])
        ]


def kinds_of_callbacks(trainer: Namespace) -> list[object]:
    """The classes of a Trainer's callbacks, in order."""
    callbacks = trainer.get("callbacks")
    return [_named(part["class_path"]) for part in callbacks] if isinstance(callbacks, list) else []


def default_logger(trainer: Namespace, module: L.LightningModule) -> dict[str, Any]:
    """The Trainer's argument `logger` where none is given: algorithm and game name a folder.

    Otherwise it is what Lightning would take.
    """
    if trainer.get("logger") not in (None, True) or not isinstance(module, OnlineGame):
        return {}
    name = _name_of_run(type(module.algorithm).__name__, type(module.oracle).__name__)
    folder, version = trainer.get("default_root_dir") or os.getcwd(), SLURMEnvironment.job_id()
    return {"logger": TensorBoardLogger(folder, name, version, default_hp_metric=False)}


def name_loggers(config: Namespace) -> None:
    """Let algorithm and game name the folder of loggers that have Lightning's own name for it."""
    kind = _named(config["model"]["class_path"])
    if not (inspect.isclass(kind) and issubclass(kind, OnlineGame)):
        return
    parts = config["model"]["init_args"]
    name = _name_of_run(*(parts[part]["class_path"] for part in ("algorithm", "oracle")))
    loggers = config["trainer"].get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, Namespace) and logger.get("init_args.name") == _LIGHTNING_LOGS:
            logger["init_args.name"] = name


def _name_of_run(*classes: str) -> str:
    return f"{_LIGHTNING_LOGS}/{'-'.join(each.rpartition('.')[2] for each in classes)}"


def runs_folder(config: Namespace) -> Path | None:
    """The folder that holds the versions of this run, where the logger is TensorBoard's."""
    logger = config["trainer"].get("logger")
    if (
        isinstance(logger, Namespace)
        and "init_args" in logger
        and logger.class_path.endswith("TensorBoardLogger")
    ):
        return Path(logger.init_args.save_dir) / (logger.init_args.name or "")
    return None


def version_of(run: Path, config: Namespace) -> int | str | None:
    """The logger's version by which a run's folder is gone on with; None where it is another's."""
    logger, runs = config["trainer"].get("logger"), runs_folder(config)
    if runs is not None:
        number = re.fullmatch(r"version_(\d+)", run.name)
        return int(number[1]) if number and run.parent == runs.absolute() else None
    if isinstance(logger, Namespace) and logger.class_path.endswith("WandbLogger"):
        folder, project = (logger.get(f"init_args.{key}") for key in ("save_dir", "project"))
        ours = run.parent == (Path(folder or ".") / (project or _LIGHTNING_LOGS)).absolute()
        return run.name if ours else None
    return None


def last_checkpoint(config: Namespace, runs: Path | None) -> Path:
    """The checkpoint of the last version that has one, or of the version that is asked for."""
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


def refuse_other_config(path: Path, config: dict[str, Any], trains: bool = True) -> None:
    """Refuse to go on with a run whose config.yaml, at `path`, is another configuration.

    `model`, `data` and `seed_everything` must be what they were, key by key, except for

    - the arguments that a part names in its `may_change_on_resume`: where a judge is reached and
      how long it is waited for, where answers are remembered, what they may cost;
    - keys with `validation` in them, which say what rows are held out, and the oracle, where
      nothing is trained;
    - another path of the same class or function of this package, or a former name of an argument;
    - an argument that the version of the run did not have yet, at its default.

    All of `trainer` may change, budgets among it. Without a file nothing is refused; one that does
    not hold a whole configuration is.
    """
    for key, was, now in _changes(path, config):
        if trains or not ("validation" in key or key.startswith(_ORACLE)):
            raise UserError(
                f"the checkpoint's run had {key} = {was}, the configuration has {now}: resume with "
                f"{path}, or start afresh without ckpt_path"
            )


def has_other_oracle(path: Path, config: dict[str, Any]) -> bool:
    """Whether the run whose config.yaml is at `path` had another oracle."""
    return any(key.startswith(_ORACLE) for key, *_ in _changes(path, config))


def _changes(path: Path, config: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Keys that a run may not resume with, with the run's value and the configuration's."""
    if not path.is_file():
        return
    saved = _saved(path)
    sections = ("model", "data", "seed_everything")
    was, now = (_flat({key: of.get(key) for key in sections}) for of in (saved, config))
    for key in sorted(was.keys() | now.keys()):
        is_new = key not in was and _is_new(key, now)
        if not (_is_same(was.get(key), now.get(key)) or _may_differ(key, now) or is_new):
            yield key, was.get(key, "nothing"), now.get(key, "nothing")


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, flat; what stands under a former name of an argument, under the present."""
    flat = dict(flatten(config))
    for key, value in [*flat.items()]:
        part, _, name = key.rpartition(".init_args.")
        names = getattr(_named(str(flat.get(f"{part}.class_path"))), "former_names", {})
        if name in names:
            del flat[key]
            if value != str(None):
                flat[f"{part}.init_args.{names[name]}"] = value
    return flat


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal, or two paths to one class or function of this package."""
    if one == other:
        return True
    ours = all(isinstance(value, str) and value.startswith("nlhf_zoo.") for value in (one, other))
    return ours and _named(one) is _named(other) is not None


def _may_differ(key: str, config: dict[str, Any]) -> bool:
    """Whether a run may go on with another value, as the part itself declares."""
    part, _, name = key.rpartition(".init_args.")
    declared = getattr(_named(str(config.get(f"{part}.class_path"))), "may_change_on_resume", ())
    return name in declared


def _is_new(key: str, config: dict[str, Any]) -> bool:
    """Whether an argument has its default, as a run has it whose version did not know it."""
    part, _, name = key.rpartition(".init_args.")
    named = _named(str(config.get(f"{part}.class_path")))
    arguments = inspect.signature(named).parameters if callable(named) else {}
    default = arguments[name].default if name in arguments else inspect.Parameter.empty
    return default is not inspect.Parameter.empty and dict(flatten(default, key)) == {
        key: config[key]
    }


def _named(path: str) -> object:
    """What stands behind a dotted path; None where nothing does."""
    try:
        return resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None


def _saved(path: Path) -> dict[str, Any]:
    """The configuration that a run has saved."""
    try:
        saved = read_config(str(path), option="")
    except UserError as error:
        raise UserError(f"{error}; {_DAMAGED}") from error
    if missing := [key for key in _SECTIONS if key not in saved]:
        raise UserError(f"{path} lacks {missing[0]}, which every run has saved; {_DAMAGED}")
    return saved


_SECTIONS = ("seed_everything", "trainer", "model", "data", "ckpt_path")
_DAMAGED = (
    "what the run was made from cannot be compared: put the file back as it was, or move it away "
    "and vouch for the configuration yourself"
)


def refuse_other_file(path: Path) -> None:
    """Refuse what is no checkpoint, or not as it was written; name the one before it, if it is.

    A checkpoint is a zip file, which holds a checksum of each of its parts (CRC-32: one bit, or up
    to four bytes in a row, are never missed). torch does not look at these.
    """
    if is_whole(path):
        return
    before = path.with_name(PREVIOUS)
    advice = "give another file"
    if before != path and is_whole(before):
        advice = f"the one before it is whole, go on with --ckpt_path {before}"
    raise UserError(f"ckpt_path {path} is no checkpoint, or not as it was written: {advice}")


def is_whole(path: Path) -> bool:
    """Whether a file is a checkpoint, and as it was written."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                return False
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # of damaged bytes: too many kinds to name
        return False
    return isinstance(content, dict) and "state_dict" in content


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dictionaries, and lists of them, as pairs of a dotted key and a plain value."""
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from flatten(part, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, (str, int, float, bool)) else str(value)
