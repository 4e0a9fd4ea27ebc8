"""Whose code may run where the files of somebody else's run are read.

`nlhf fit` runs what its configuration names, for it is the user's own. Commands that read a run as
it was left, perhaps by somebody else, take parts of this package, of torch.optim and Lightning's
loggers and callbacks, and any others where `--allow-code` is given. docs/trust.md says more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from nlhf_zoo.errors import UserError

# Packages whose classes and functions may stand in the files of a run.
TRUSTED = ("nlhf_zoo", "torch.optim", "lightning.pytorch.callbacks", "lightning.pytorch.loggers")
_LARGEST = 1_000_000  # bytes of a file that could hold a part
_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}]*)")


def refuse_foreign_code(content: object, file: Path, allow_code: bool) -> None:
    """Refuse a run's configuration, or a part of it, that names code which is not trusted.

    Nothing that it names is imported, but modules of the trusted packages.

    Args:
        content: of the file, as YAML gives it.
        file: the file, for the sentence; those it names lie beside it.
        allow_code: take it as it is.

    Raises:
        UserError: it names a class or a function of another module, or reads the environment.
    """
    if allow_code:
        return
    for place, text in _texts(content):
        where = f"{file}: {place} is {text!r:.100}"
        if found := _ENVIRONMENT.search(text):
            raise UserError(
                f"{where}, which reads the environment variable {found[1].strip()}: give "
                "--allow-code if you trust that file"
            )
        if _is_foreign(text, place.endswith("class_path")):
            raise UserError(
                f"{where}, code that is not of nlhf_zoo or torch.optim and would be run: give "
                "--allow-code if you trust it"
            )
        refuse_foreign_code(_part_in(text, file.parent), file.parent / text[:200], False)


def _texts(content: object, place: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a configuration, with the keys that lead there."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _texts(value, f"{place}.{key}" if place else str(key))
    elif isinstance(content, Sequence) and not isinstance(content, str):
        for number, value in enumerate(content):
            yield from _texts(value, f"{place}.{number}")
    elif isinstance(content, str):
        yield place, content


def _is_foreign(text: str, is_class: bool) -> bool:
    """Whether a text is the dotted path of something that can be imported, and is not trusted."""
    parts = text.split(".")
    if len(parts) == 1 or not all(part.isidentifier() for part in parts):
        return False  # of a short name the class is one that commands have imported
    if _is_below(text, TRUSTED):
        try:
            named = resolve_name(text)
        except (ImportError, AttributeError, ValueError):
            return False  # there is no such thing, as the parser will say
        return not _is_below(str(getattr(named, "__module__", text)), TRUSTED)
    return is_class or _is_module(parts[0])


def _is_below(path: str, packages: Sequence[str]) -> bool:
    return any(path == package or path.startswith(f"{package}.") for package in packages)


def _is_module(name: str) -> bool:
    """Whether a module of this name could be imported, here or from the working folder."""
    if name in sys.modules or PathFinder.find_spec(name, ["."]) is not None:
        return True
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _part_in(text: str, folder: Path) -> Any:
    """What a file holds that stands in the place of a part; None where there is no such file."""
    for path in (folder / text, Path(text)):
        try:
            if path.is_file() and path.stat().st_size <= _LARGEST:
                content = yaml.safe_load(path.read_text(encoding="utf-8"))
                return content if isinstance(content, Mapping) else None
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            continue
    return None
