"""Classes and their options, read off the source: nothing is imported, not even torch."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import nlhf_zoo

_PACKAGE = Path(__file__).parent.parent
_FOLDERS = (*nlhf_zoo.FOLDERS, "health", "text_models")


@dataclass(frozen=True)
class Signature:
    """What is known of a class."""

    bases: tuple[str, ...]  # their names
    options: dict[str, str] | None  # annotations of its own constructor's arguments, if it has one
    abstract: bool = False  # or no choice of a user's
    open: bool = False  # whether its constructor takes any option


def source_files() -> list[Path]:
    """The files whose classes a configuration may name."""
    return sorted(path for folder in _FOLDERS for path in (_PACKAGE / folder).rglob("*.py"))


@cache
def classes() -> dict[str, Signature]:
    """The classes that a configuration may name; of a name that two have, none can be told."""
    found: dict[str, Signature] = {}
    twice: set[str] = set()
    for path in source_files():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                twice |= {node.name} & found.keys()
                found[node.name] = _signature(node)
    return {name: signature for name, signature in found.items() if name not in twice}


@cache
def trainer_options() -> frozenset[str]:
    """Options of Lightning's Trainer; none where its source is not where it was."""
    for node in _lightning("pytorch/trainer/trainer.py"):
        if isinstance(node, ast.ClassDef) and node.name == "Trainer":
            return frozenset(_signature(node).options or ())
    return frozenset()


@cache
def callbacks() -> frozenset[str]:
    """Names of Lightning's own callbacks; none where its source is not where it was."""
    for node in _lightning("pytorch/callbacks/__init__.py"):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    return frozenset()


def _lightning(file: str) -> list[ast.stmt]:
    """The statements of a file of Lightning's, found without importing it."""
    spec = find_spec("lightning")
    folders = (spec and spec.submodule_search_locations) or ()
    paths = [Path(folder) / file for folder in folders]
    return [node for p in paths if p.is_file() for node in ast.parse(p.read_text("utf-8")).body]


def names_in(module: str) -> frozenset[str] | None:
    """Names in a module of this package; None where they cannot be told."""
    path = _PACKAGE.parent.joinpath(*module.split("."))
    files = [f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()]
    if not files:
        return None
    found: set[str] = set()
    for node in ast.parse(files[0].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
    return None if "__getattr__" in found else frozenset(found)


def options_of(name: str) -> dict[str, str] | None:
    """Options of a class with their annotations; None where they cannot be told."""
    signature = classes().get(name)
    if signature is None or signature.open:
        return None
    if signature.options is not None:
        return signature.options
    inherited = [options_of(base) for base in signature.bases if base in classes()]
    if len(inherited) == len(signature.bases) == 1:
        return inherited[0]
    ours = [options for options in inherited if options]
    return ours[0] if len(ours) == 1 else {} if not signature.bases else None


@cache
def options_in(file: str, name: str) -> dict[str, str]:
    """Options of a command: of a function, or a record, in a file of cli; none where none is."""
    path = _PACKAGE / "cli" / file
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _arguments(node)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _fields(node)
    return {}


def parts_in(annotation: str) -> list[str]:
    """Classes of this package that an annotation names."""
    return [word for word in re.findall(r"\w+", annotation) if word in classes()]


def choices(base: str) -> list[str]:
    """The concrete classes of this package that may stand where ``base`` is asked for."""
    known = classes()
    below = {name for name in known if base in _above(name)} | {base}
    parents = {parent for name in below for parent in known[name].bases}
    return sorted(name for name in below - parents if not known[name].abstract)


def _above(name: str) -> set[str]:
    """All classes of this package that a class is made from."""
    bases = [base for base in classes()[name].bases if base in classes()]
    return set(bases).union(*map(_above, bases))


def _signature(node: ast.ClassDef) -> Signature:
    bases = tuple(ast.unparse(base).rpartition(".")[2] for base in node.bases)
    marks = [ast.unparse(mark) for mark in node.decorator_list]
    if any(mark.startswith("dataclass") for mark in marks):
        return Signature(bases, _fields(node))
    # What seeks no equilibrium is trained by a command of its own.
    abstract = "ABC" in bases or "seeks_equilibrium = False" in map(ast.unparse, node.body)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            options = dict(list(_arguments(part).items())[1:])
            return Signature(bases, options, abstract, part.args.kwarg is not None)
    return Signature(bases, None, abstract)


def _fields(node: ast.ClassDef) -> dict[str, str]:
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    return {ast.unparse(field.target): ast.unparse(field.annotation) for field in fields}


def _arguments(node: ast.FunctionDef) -> dict[str, str]:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in arguments}
