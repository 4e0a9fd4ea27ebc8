"""Whose code may run where the files of somebody else's run are read.

`nlhf fit` runs what its configuration names, for it is the user's own. Commands that read a run as
it was left, perhaps by somebody else, take parts of this package, of torch.optim and Lightning's
loggers and callbacks, and any others where `--allow-code` is given. docs/trust.md says more.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

from nlhf_zoo.cli.files import loaded, part_in
from nlhf_zoo.errors import UserError

# Packages whose classes and functions may stand in the files of a run.
TRUSTED = ("nlhf_zoo", "torch.optim", "lightning.pytorch.callbacks", "lightning.pytorch.loggers")
# What may stand in braces: another value by its place, and nothing that is computed.
_PLACE = re.compile(r"\$\{[\w.\[\]]+\}")
_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}]*)")
_RESOLVER = "oc.env"
# How files of data end.
_DATA = {
    *("csv", "json", "jsonl", "npy", "npz", "parquet", "pt"),
    *("soc", "soi", "toc", "toi", "tsv", "txt"),
}


def refuse_foreign_code(content: object, file: Path, allow_code: bool) -> None:
    """Refuse a run's configuration, or a part of it, that names code which is not trusted.

    Nothing that it names is imported, but modules of the trusted packages.

    Args:
        content: of the file, as YAML gives it.
        file: the file, for the sentence; those it names lie beside it.
        allow_code: take it as it is.

    Raises:
        UserError: it names a class or a function of another module, reads the environment, or has
            a text that is put together only as it is read.
    """
    if allow_code:
        return
    seen = {file.absolute()}
    left: list[tuple[object, Path]] = [(content, file)]
    for content, file in left:  # which grows
        for place, text in _texts(content, set()):
            _refuse_text(place, text, file)
            left += [(inside, file) for inside in _inline(text)]
            for path in _files(text, file.parent):
                if path.absolute() not in seen:
                    seen.add(path.absolute())
                    left.append((part_in(path), path))


@contextmanager
def closed_environment(allow_code: bool) -> Iterator[None]:
    """Let no interpolation read the environment meanwhile, however it is written."""
    if allow_code:
        yield
        return
    from omegaconf.basecontainer import BaseContainer  # OmegaConf itself cannot put back as it was

    resolvers = BaseContainer._resolvers
    kept = resolvers.pop(_RESOLVER)
    try:
        yield
    except UserError as error:
        if f"Unsupported interpolation type {_RESOLVER}" in str(error):
            raise UserError(
                f"{error}: reading the environment needs --allow-code, if you trust what reads it"
            ) from error
        raise
    finally:
        resolvers[_RESOLVER] = kept


def _refuse_text(place: str, text: str, file: Path) -> None:
    where = f"{file}: {place or 'it'} is {text!r:.100}"
    if found := _ENVIRONMENT.search(text):
        raise UserError(
            f"{where}, which reads the environment variable {found[1].strip()}: give "
            "--allow-code if you trust that file"
        )
    if "${" in text and not _PLACE.fullmatch(text):
        raise UserError(
            f"{where}, of which one cannot say what it will be: write it out, or give --allow-code "
            "if you trust that file"
        )
    if _is_foreign(text, place.endswith("class_path")):
        raise UserError(
            f"{where}, code that is not of nlhf_zoo or torch.optim and would be run: give "
            "--allow-code if you trust it"
        )


def _texts(content: object, seen: set[int], place: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a configuration, with the keys that lead there; what aliases repeat, once."""
    if isinstance(content, str):
        yield place, content
    if isinstance(content, str) or id(content) in seen:
        return
    parts: Iterator[tuple[object, object]] = iter(())
    if isinstance(content, Mapping):
        parts = iter(content.items())
    elif isinstance(content, Sequence):
        parts = iter(enumerate(content))
    seen.add(id(content))
    for key, value in parts:
        yield from _texts(value, seen, f"{place}.{key}" if place else str(key))


def _inline(text: str) -> Iterator[object]:
    """What the parser finds in a text that is YAML itself."""
    if any(mark in text for mark in "{[:-\n"):
        content = loaded(text)
        if not isinstance(content, str):
            yield content


def _files(text: str, folder: Path) -> Iterator[Path]:
    """The files that may stand in the place of a part where a text does, as jsonargparse looks."""
    name = re.sub("^file:///?", "/", os.path.expanduser(text))
    for path in (folder / name, Path(name)):
        if os.path.isfile(path):  # which takes names of any length
            yield path


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
    if not is_class and parts[-1].lower() in _DATA:
        return _is_module_here(parts)
    return is_class or _is_module(parts[0])


def _is_below(path: str, packages: Sequence[str]) -> bool:
    return any(path == package or path.startswith(f"{package}.") for package in packages)


def _is_module_here(parts: Sequence[str]) -> bool:
    """Whether a dotted path leads to a module in the working folder; folders alone are none."""
    folders: Sequence[str] | None = [os.getcwd()]  # Python keeps what "." was at first
    for part in parts:
        if (spec := PathFinder.find_spec(part, folders)) is None:
            return False
        if spec.origin is not None:
            return True
        folders = spec.submodule_search_locations
    return True


def _is_module(name: str) -> bool:
    """Whether a module of this name could be imported, here or from the working folder."""
    if name in sys.modules or PathFinder.find_spec(name, [os.getcwd()]) is not None:
        return True
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
