"""What a configuration names, and the papers that the source of each declares."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from nlhf_zoo.cli.files import read_config
from nlhf_zoo.cli.signatures import source_files

_ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")
# Packages of which nobody cites a class: they are cited whole, as a paper cites Python.
_TOOLS = ("torch", "lightning", "torchmetrics", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class Mention:
    """A class or a function that a configuration names.

    Args:
        name: as the configuration names it.
        papers: what it declares: numbers of arXiv, or its own words where there is no number.
        found: whether its source was.
    """

    name: str
    papers: tuple[str, ...] = ()
    found: bool = True


def merged(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """A configuration stacked on another, as ``nlhf fit`` does: another class replaces a part."""
    whole = dict(below)
    for key, value in above.items():
        old = whole.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            is_other = "class_path" in value and value["class_path"] != old.get("class_path")
            value = value if is_other else merged(old, value)
        whole[key] = value
    return whole


def mentions(
    content: object, file: Path, place: str = "", above: frozenset[Path] = frozenset()
) -> Iterator[Mention]:
    """What declares a paper, and what is the user's own, part by part; the algorithm comes first.

    Args:
        content: of a configuration.
        file: that it is in, beside which other files that it names lie.
        place: the key that leads to this content.
        above: files that have led here, which are not read again.
    """
    if isinstance(content, Mapping):
        ordered = sorted(content.items(), key=lambda item: item[0] != "algorithm")
        for key, value in ordered:
            yield from mentions(value, file, str(key), above)
    elif isinstance(content, list):
        for value in content:
            yield from mentions(value, file, place, above)
    elif isinstance(content, str):
        path = file.parent / content
        if path.suffix in (".yaml", ".yml") and path.is_file():  # a comparison's, or a part
            if path.resolve() not in above:
                inside = read_config(str(path), option="")
                yield from mentions(inside, path, place, above | {path.resolve()})
        elif mention := _mention(content, is_class=place == "class_path"):
            yield mention


def _mention(name: str, is_class: bool) -> Mention | None:
    """What a text names; None where it names nothing that has a paper."""
    module, _, last = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    if name.startswith("nlhf_zoo.") or not module:
        papers = _of_the_package().get(last, ())
        return Mention(last, papers) if papers else None
    if not is_class or module.partition(".")[0] in _TOOLS:
        return None
    path = _source(module.split("."))
    try:
        return Mention(name, found=False) if path is None else Mention(name, _declared(path)[last])
    except (SyntaxError, UnicodeDecodeError, KeyError):
        return Mention(name, found=False)


@cache
def _of_the_package() -> dict[str, tuple[str, ...]]:
    """The papers of each class of ours, and of each loss."""
    return {name: papers for path in source_files() for name, papers in _declared(path).items()}


def _declared(path: Path) -> dict[str, tuple[str, ...]]:
    """What the classes and functions of a file declare.

    An algorithm declares its ``paper``; others name theirs where they say what they are.
    """
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            attribute = _paper(node)
            numbers = _ARXIV.findall(attribute or ast.get_docstring(node) or "")
            papers = numbers or ([attribute] if attribute else [])
            found[node.name] = tuple(dict.fromkeys(papers))
    return found


def _paper(node: ast.ClassDef | ast.FunctionDef) -> str | None:
    """The attribute ``paper`` of a class."""
    for part in node.body if isinstance(node, ast.ClassDef) else ():
        targets = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "paper" for t in targets):
            value = getattr(part, "value", None)
            return str(value.value) if isinstance(value, ast.Constant) else None
    return None


def _source(parts: list[str]) -> Path | None:
    """The file of a module, here or where Python looks; no package on the way is imported."""
    spec, folders = None, [os.getcwd(), *sys.path]
    for part in parts:
        spec = PathFinder.find_spec(part, folders)
        if spec is None:
            return None
        folders = [*(spec.submodule_search_locations or ())]
    is_python = spec is not None and spec.origin is not None and spec.origin.endswith(".py")
    return Path(spec.origin) if is_python else None  # type: ignore[union-attr, arg-type]
