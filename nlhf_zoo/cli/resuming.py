"""Finding a run's checkpoint, and refusing one that the configuration did not make."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace

from nlhf_zoo.errors import UserError


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


def last_checkpoint(config: Namespace, runs: Path | None) -> Path:
    """The checkpoint of the last version that has one, or of the version that is asked for.

    Raises:
        UserError: no version has a checkpoint, or the logger makes no versions.
    """
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
    """Refuse to go on with a run that another configuration made.

    Its budgets may differ, and where a judge is reached.

    Args:
        path: the run's config.yaml; without one nothing is refused.
        config: the configuration to go on with.
        trains: whether it is to be trained on; an evaluation may be of other held-out rows.
    """
    if not path.is_file():
        return
    saved = yaml.safe_load(path.read_text())
    kept = ("model", "data", "seed_everything")
    was = dict(flatten({key: saved.get(key) for key in kept}))
    now = dict(flatten({key: config.get(key) for key in kept}))
    for key in sorted(was.keys() | now.keys()):
        if not _is_same(was.get(key), now.get(key)) and not (
            _may_differ(key, now) or (not trains and "validation" in key)
        ):
            raise UserError(
                f"the checkpoint's run had {key} = {was.get(key, 'nothing')}, "
                f"the configuration has {now.get(key, 'nothing')}: resume with {path}, "
                "or start afresh without ckpt_path"
            )


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal, or two paths to one class or function of this package."""
    if one == other:
        return True
    both = (one, other)
    if not all(isinstance(value, str) and value.startswith("nlhf_zoo.") for value in both):
        return False
    try:
        first, second = map(_imported, both)
    except (ImportError, AttributeError):
        return False
    return first is second


def _imported(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _may_differ(key: str, config: dict[str, Any]) -> bool:
    """Whether a run may go on with another value, as the part itself declares."""
    part, _, name = key.rpartition(".init_args.")
    try:
        of_part = _imported(str(config.get(f"{part}.class_path")))
    except (ImportError, AttributeError, ValueError):
        return False
    return name in getattr(of_part, "may_change_on_resume", ())


def refuse_other_file(path: Path) -> None:
    """Refuse what is no checkpoint, or half of one; mapped: a large one is not read twice."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        whole = isinstance(content, dict) and "state_dict" in content
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError):
        whole = False
    if not whole:
        raise UserError(f"ckpt_path {path} is no checkpoint, or not a whole one: give another file")


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dictionaries, and lists of them, as pairs of a dotted key and a plain value."""
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from flatten(part, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, (str, int, float, bool)) else str(value)
