"""What jsonargparse says of a mistake, in one sentence."""

from __future__ import annotations

import re
from inspect import isabstract

from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.policies import Generator, Policy, Reference
from nlhf_zoo.realisation import Realisation
from nlhf_zoo.rollout import Rollout

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
    if function := re.search(r"a function or a callable class: (.*)\. Got value: (\S+)", message):
        return f"{option}{function[2]} cannot be imported: {function[1]}"
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
        "generator": Generator,
    }.get(keys[0] if keys else "")
    names: set[str] = set()
    todo: list[type] = [] if base is None else base.__subclasses__()
    for cls in todo:
        todo.extend(cls.__subclasses__())  # the loop goes on over these
        if cls.__module__.startswith("nlhf_zoo.") and not (isabstract(cls) or cls.__subclasses__()):
            names.add(cls.__name__)
    return f": choose one of {', '.join(sorted(names))}" if names else ""
