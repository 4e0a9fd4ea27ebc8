"""Files of a command: configurations are YAML and hold options, outputs can be written."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from nlhf_zoo.cli.outputs import refuse_output as refuse_output
from nlhf_zoo.cli.yaml_rules import LARGEST, loader, refuse_unclear
from nlhf_zoo.errors import UserError


def refuse_bad_files(args: Sequence[str]) -> None:
    """Refuse configuration files that hold no YAML; jsonargparse would not say which."""
    given = config_files(args)
    for path in given:
        read_config(path)
    parts = [arg.partition("=")[2] if arg.startswith("--") else arg for arg in args]
    for path in parts:  # a file in the place of a part
        if path not in given and path.endswith((".yaml", ".yml")) and os.path.isfile(path):
            read_config(path, option="")


def config_files(args: Sequence[str]) -> list[str]:
    """What stands behind `--config` on a command line."""
    given = [value for flag, value in pairwise(args) if flag in ("-c", "--config")]
    joined = [re.fullmatch(r"(?s)(?:--config=|-c=?(?=.))(.*)", arg) for arg in args]
    return given + [found[1] for found in joined if found]


def read_config(name: str, option: str = "--config ") -> dict[str, Any]:
    """The options in a file, which is there, text, YAML, and holds some; ``option`` gave it."""
    path = Path(name)
    if not os.path.isfile(name):  # which takes names of any length
        refuse_device(name, option)
        # jsonargparse says what it thinks of a folder, and reads options in place of a name.
        if os.path.exists(name) or name in ("", "-") or "{" in name or "\n" in name:
            return {}
        raise UserError(f"--config: File does not exist: '{path.absolute()}'")
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{option}{name} is too large for a configuration: give another file")
        text = path.read_text(encoding="utf-8")
        refuse_unclear(text, f"{option}{name}")
        content = _load(text)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{option}{name} is not YAML: {error.problem}{line}") from error
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise UserError(f"{option}{name} is not text in UTF-8: save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{option}{name} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise UserError(f"{option}{name} holds no options: write them as `name: value`")
    return content


def _load(text: str) -> Any:
    """What YAML holds, as jsonargparse reads it."""
    from jsonargparse import get_loader  # where there is something to read

    return loader(get_loader("yaml"))(text)


def loaded(text: str) -> Any:
    """What jsonargparse finds in a value that is YAML; None where it finds nothing."""
    try:
        return _load(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        return None


def part_in(path: Path) -> Any:
    """What jsonargparse finds in a file in the place of a part; None where it finds nothing."""
    try:
        return loaded(path.read_text(encoding="utf-8")) if path.stat().st_size <= LARGEST else None
    except (OSError, ValueError):
        return None


def refuse_device(name: str, option: str = "--config ") -> None:
    """Refuse what is no file, and may never end when it is read; ``option`` gave it."""
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise UserError(f"{option}{name} is a device and no file: give a file")
