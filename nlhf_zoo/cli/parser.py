"""What jsonargparse says of a mistake, in one sentence."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, get_loader, set_dumper, set_loader
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nlhf_zoo.cli.callables import refuse_callable
from nlhf_zoo.cli.errors import sentence_of
from nlhf_zoo.cli.signatures import choices
from nlhf_zoo.cli.yaml_rules import dump, loader
from nlhf_zoo.errors import UserError, nearest

for _mode in ("omegaconf+", "yaml"):  # the first reads as the second, and finds `${...}` later
    set_loader(_mode, loader(get_loader("yaml")), (YAMLError,))
set_dumper("yaml", dump)

# Where it is wrong: as jsonargparse says it, and as `shorten` has said it of a part of a part.
_KEY = r'(?:Parser key "([^"]+)"|(?:argument )?--([\w.]+)):\s*'
# What jsonargparse says of a value beside what is wrong with it.
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:$|Subclass types expect"
    r"|a class path \(str\)|a dict with|Expected a path but|Given value type: |Given value: "
)
# What it says of a value that is no part, from within.
_INTERNAL = (
    r"argument of type '\w+' is not iterable|object has no attribute 'keys'|unhashable type|"
    r"Dict must include a class_path"
)
_PART = "expected the name of a class, or a mapping of class_path and init_args"
_QUOTES = ': yes, no, on and off are text only in quotes, as in ["yes", "no"]'
_KINDS = {"NoneType": "null", "str": "text", "int": "a whole number", "float": "a number"}


def shorten(message: str) -> str:
    """Many lines of jsonargparse's in one sentence: the option, and the innermost cause."""
    keys = [one or other for one, other in re.findall(_KEY, message)]
    option = f"--{'.'.join(keys)}: " if keys else ""
    lines = [re.sub(rf"^(\s|- )*({_KEY})*", "", line) for line in message.splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)]
    if missing := re.search(r"Expected a dot import path string: (.*)", message):
        return f"{option}{_no_class(missing[1], keys[-1:])}"
    if re.search(_INTERNAL, message):
        return option + _PART
    if machine := re.search(r"\[Errno \d+\] (.+?): '(.{,60})", message):
        return f"{option}{machine[2]}: {machine[1]}"
    if problem := re.search(r"expects a function or a callable class: (.*)", message):
        return option + _no_callable(problem[1])
    if re.search(r"but \S+ is abstract", message):
        return f"{option}name the class whose options you give{_choices(keys[-1:])}"
    causes = [line for line in lines if not re.match("Expected an? |Not a valid subclass", line)]
    if causes:
        return option + " ".join(causes)
    kinds = re.findall(
        r"Expected an? (?:<class '(?:[\w.]*\.)?(\w+)'>|typing.Literal\[(.*?)\])", message
    )
    value = re.search(r"(?:Given|Got) value: (.*)", message)
    if kinds == [("NoneType", "")] and value:
        return f"{option}{_PART}, but got {value[1]!r:.200}"
    if kinds and value:
        expected = " or ".join(_KINDS.get(kind, kind) or literals for kind, literals in kinds)
        truth = ("str", "") in kinds and value[1] in ("True", "False")
        quotes = _QUOTES if truth else ""
        return f"{option}expected {expected}, but got {value[1]!r:.200}{quotes}"
    return option + " ".join(lines)


# Whose classes stand behind an option.
_BASES = {
    "algorithm": "PolicyOptimizer",
    "inner": "PolicyOptimizer",
    "oracle": "PreferenceOracle",
    "oracles": "PreferenceOracle",
    "policy": "Policy",
    "reference": "Reference",
    "start": "Reference",
    "rollout": "Rollout",
    "realisation": "Realisation",
    "generator": "Generator",
}


def _no_class(name: str, keys: list[str]) -> str:
    """What to take in place of a class that is none, or cannot stand there."""
    base = _BASES.get(keys[0] if keys else "")
    if base == "PreferenceOracle" and name in choices(base):  # it is for another kind of oracle
        texts = ", ".join(choices("TextOracle"))
        return (
            f"{name} cannot stand there, where an oracle of texts is asked: choose one of {texts}"
        )
    return f"there is no class {name!r}{_choices(keys)}"


def _no_callable(problem: str) -> str:
    """What is wrong with a callable, without the names of types in Python's own words."""
    fits = re.match(
        r"Expected '(.+?)' to be a (?:function that returns|subclass of) (.+?)\. ?", problem
    )
    if fits is None:
        cause, _, value = problem.partition(". Got value: ")
        return f"{value or 'what is named'} cannot be imported: {cause}"
    kinds = re.findall(r"(?!class\b|Union\b)\b[A-Z]\w*", fits[2])
    wanted = " or ".join(kinds)
    return (
        f"{fits[1]} must be a class below {wanted}, or a function that is annotated to return one"
    )


def _choices(keys: list[str]) -> str:
    """The classes that may stand behind an option, as the end of a sentence."""
    base = _BASES.get(keys[0] if keys else "")
    return "" if base is None else f": choose one of {', '.join(choices(base))}"


def find_own_code() -> None:
    """Let a rule of the user's own be found in the working folder; last, so that it hides none."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)


def with_values(args: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Arguments in which each flag is one word with a value: `--overwrite` is `--overwrite=true`.

    So flags are written alike in every command: alone, or with true or false; with an underscore,
    or a hyphen in its place.
    """
    written: list[str] = []
    rest = list(args)
    while rest:
        name, equals, value = (arg := rest.pop(0)).partition("=")
        flag = "--" + name[2:].replace("-", "_")
        if not name.startswith("--") or flag not in flags:
            written.append(arg)
        elif equals:
            written.append(f"{flag}={value}")
        else:
            given = rest.pop(0) if rest[:1] in (["true"], ["false"]) else "true"
            written.append(f"{flag}={given}")
    return written


def taken_out(args: Sequence[str], flag: str) -> tuple[list[str], bool]:
    """Arguments `with_values` without a flag, and whether it was given and true."""
    given = [arg.partition("=")[2] for arg in args if arg.startswith(f"{flag}=")]
    if wrong := [value for value in given if value not in ("true", "false")]:
        raise UserError(f"{flag}: expected true or false, but got {wrong[0]!r}")
    return [arg for arg in args if not arg.startswith(f"{flag}=")], given[-1:] == ["true"]


class SentenceParser(ArgumentParser):
    """A parser whose errors are one sentence, not fifty lines of usage; and to which null is null.

    jsonargparse 4.53 reads an option of a part of a part as YAML, and hands it on as Python would
    print it: null as "None", a line break in a list as a backslash and an n. Options are not
    abbreviated, so that whoever looks for a file behind `--config` finds it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def parse_args(  # type: ignore[override]  # what else there is goes on as it comes
        self, args: Sequence[str] | None = None, *others: Any, **options: Any
    ) -> Any:
        """Parse; in a part, what Python has printed is what it was before."""
        if args is not None and not self.exit_on_error:  # a part's parser
            args = [re.sub(r"(?s)(?<=^--)([\w.]+)=(.*)", _as_yaml, one) for one in args]
        return super().parse_args(args, *others, **options)

    def instantiate(self, namespace: Namespace, *others: Any, **options: Any) -> Namespace:
        """Make the parts; callables are looked at before any of them is called."""
        for action in self._actions:
            annotation = getattr(action, "_typehint", inspect.Parameter.empty)
            if annotation is not inspect.Parameter.empty and action.dest in namespace:
                refuse_callable(action.dest, annotation, namespace[action.dest])
            if action.dest in namespace and namespace[action.dest] is None:
                _refuse_null(action, annotation)
        made: Namespace = super().instantiate(namespace, *others, **options)
        return made

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong, and of an option that is misspelt, which one is like it."""
        sentence = shorten(message)
        if found := re.match(r"unrecognized arguments: --([\w-]+)(?:\.([\w-]+))?", sentence):
            head, rest = found.groups()
            given = [name.lstrip("-") for action in self._actions for name in action.option_strings]
            inner = sorted(n.partition(".")[2] for n in given if n.startswith(f"{head}."))
            if rest and inner:
                meant = nearest(rest, inner)
                sentence += meant or f": --{head} has no {rest!r}, but {', '.join(inner)}"
            else:
                sentence += nearest(head, {name.split(".")[0] for name in given})
        raise UserError(sentence) from ex


@contextmanager
def as_user_errors(where: str = "") -> Iterator[None]:
    """What parts refuse while they are made is the user's error: one sentence, after `where`."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # slow to import

    try:
        yield
    except UserError as error:
        if not where:
            raise  # as the kind that it is
        raise UserError(where + str(error).removeprefix("--")) from error
    except OmegaConfBaseException as error:
        raise UserError(f"{where}an interpolation fails: {error}") from error
    except (ValueError, TypeError, OSError, ImportError, MisconfigurationException) as error:
        sentence = sentence_of(error) or shorten(str(error)) or type(error).__name__
        raise UserError(where + sentence) from error


def _refuse_null(action: Any, annotation: object) -> None:
    """Refuse null where it is no value; jsonargparse takes it for any option that is no class."""
    kinds = getattr(action, "type", None) if annotation is inspect.Parameter.empty else annotation
    if kinds in (int, float, str, bool) and action.default is not None:
        what = {
            "int": "a whole number",
            "float": "a number",
            "str": "a text",
            "bool": "true or false",
        }
        raise UserError(
            f"{action.dest} is null, but must be {what[kinds.__name__]}: leave it out, or give one"
        )


def _as_yaml(option: re.Match[str]) -> str:
    """An option whose value Python has printed, if it has, as YAML has it."""
    try:
        with warnings.catch_warnings(action="error"):  # of escapes that Python does not print
            value = ast.literal_eval(option[2])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return option[0]
    if not (value is None or isinstance(value, list | dict)):
        return option[0]
    try:
        written = json.dumps(value, ensure_ascii=False)  # which is YAML, with all texts in quotes
    except (TypeError, ValueError):
        return option[0]
    return f"{option[1]}={written}" if json.loads(written) == value else option[0]
