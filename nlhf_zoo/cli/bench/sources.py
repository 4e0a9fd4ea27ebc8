"""Which files of one's own an algorithm is written in, by what its block names."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType


def checksums(block: object) -> dict[str, str]:
    """SHA-256 of the files of one's own behind a block, by the names of their modules.

    These are the modules of all classes and functions that the block names, however deep in its
    arguments, and those of one's own that such a module has a name from: base classes, helpers,
    parts that stand as defaults. nlhf_zoo and what is installed have versions instead.

    Args:
        block: {class_path, init_args} of an algorithm that has been made, so that what it names is
            imported.
    """
    found: dict[str, str] = {}
    left = [module for text in _texts(block) if (module := _module_of(text)) is not None]
    while left:
        module = left.pop()
        file = _own_file(module)
        if file is None or module.__name__ in found:
            continue
        found[module.__name__] = hashlib.sha256(file.read_bytes()).hexdigest()
        left += _named_in(module)
    return dict(sorted(found.items()))


def _texts(content: object) -> Iterator[str]:
    """All texts in a block."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _texts(value)
    elif isinstance(content, Sequence):
        for value in content:
            yield from _texts(value)


def _module_of(text: str) -> ModuleType | None:
    """The module that has what a dotted path names; None where none is imported."""
    parts = text.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if (module := sys.modules.get(".".join(parts[:end]))) is not None:
            return module
    return None


def _named_in(module: ModuleType) -> Iterator[ModuleType]:
    """Modules that a module has a name from."""
    for value in [*vars(module).values()]:
        name = value.__name__ if isinstance(value, ModuleType) else _home(value)
        if name is not None and (other := sys.modules.get(name)) is not None:
            yield other


def _home(value: object) -> str | None:
    """The name of the module that a class, a function or an object is of."""
    try:
        name = getattr(value, "__module__", None)
    except Exception:  # whatever an object of somebody's answers
        return None
    return name if isinstance(name, str) else None


def _own_file(module: ModuleType) -> Path | None:
    """The file of a module of one's own; None of this package and of what is installed."""
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] == "nlhf_zoo":
        return None
    path = Path(file).resolve()
    installed = {
        Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "purelib", "platlib")
    }
    return None if any(path.is_relative_to(place) for place in installed) else path
