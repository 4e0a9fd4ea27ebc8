"""What a configuration may name where a part asks for a function: looked at before it is called.

jsonargparse 4.53 looks at the return annotation of a function that is named by itself, where a
class is to be returned. A function with `init_args` it calls unseen, and where no class is returned
it takes any callable.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pkgutil import resolve_name
from types import SimpleNamespace, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import Namespace

from nlhf_zoo.errors import UserError


def refuse_callable(option: str, annotation: object, value: object) -> None:
    """Refuse a callable that is not what an option asks for.

    Taken are a class below the one that is to be returned, with its options; a function whose
    return annotation is the one asked for; a class whose instances are such functions. Where a
    plain value is returned, a function of the user's own needs no annotation.

    Args:
        option: its name, for the sentence.
        annotation: of the option.
        value: as it was parsed: a function, or a class path with arguments; or a list of them.

    Raises:
        UserError: it is something else. Nothing of it was called.
    """
    wanted = list(_returns(annotation))
    for entry in value if isinstance(value, list | tuple) else (value,):
        if isinstance(entry, Namespace | Mapping) and "class_path" in entry:
            _refuse_path(option, annotation, wanted, str(entry["class_path"]))
        elif wanted and inspect.isroutine(entry) and not _is_annotated(option, entry, wanted):
            _refuse(option, f"{entry.__module__}.{entry.__qualname__}", wanted)


def _returns(annotation: object) -> Iterator[object]:
    """What the functions return that an annotation asks for, alone or among other things."""
    args = get_args(annotation)
    if get_origin(annotation) is Callable:
        yield from args[-1:]  # of a bare one nothing is said
    else:
        for part in args:
            yield from _returns(part)


def _refuse_path(option: str, annotation: object, wanted: list[object], path: str) -> None:
    """Refuse a class path, with arguments, that would be called for what it is not."""
    try:
        named = resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return  # a short name, which the parser has found among the classes that fit
    anything = annotation in (Any, object, inspect.Parameter.empty)
    if inspect.isclass(named):
        if anything:
            raise UserError(f"{option}: {path} has no place there, where no class is asked for")
        is_made = any(issubclass(named, kind) for kind in _classes(wanted))
        if wanted and not is_made and not _is_annotated(option, named.__call__, wanted):
            _refuse(option, path, wanted)
    elif wanted or anything:
        raise UserError(
            f"{option}: {path} is a function, which takes no options: give its name alone, or a "
            "class"
        )


def _classes(wanted: list[object]) -> Iterator[type]:
    """The classes among what is to be returned."""
    for kind in wanted:
        for part in _alternatives(kind):
            if inspect.isclass(part):
                yield part


def _alternatives(kind: Any) -> list[Any]:
    """The classes that an annotation allows, without what they hold: list of list[float]."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return [get_origin(part) or part for part in parts]


def _is_annotated(option: str, function: Any, wanted: list[object]) -> bool:
    """Whether a function says that it returns one of the kinds that are asked for.

    One that returns a plain value may say nothing, as long as it is none of Python's own.
    """
    if Any in wanted:
        return True
    kinds = tuple(_classes(wanted))
    is_plain = all(kind.__module__ == "builtins" for kind in kinds)
    try:
        said = _said(function)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        if not is_plain:
            raise UserError(
                f"{option}: the return annotation of {function.__module__}."
                f"{function.__qualname__} cannot be resolved ({error}): import what it names where "
                "the function stands, and not under TYPE_CHECKING alone"
            ) from error
        said = inspect.Parameter.empty
    if said is inspect.Parameter.empty:
        top = str(getattr(function, "__module__", "")).partition(".")[0]
        return is_plain and top not in sys.stdlib_module_names
    if float in kinds:
        kinds += (int,)
    return all(inspect.isclass(part) and issubclass(part, kinds) for part in _alternatives(said))


def _said(function: Any) -> object:
    """The return annotation of a function; its arguments' need not be there when it is called."""
    said = getattr(function, "__annotations__", {}).get("return", inspect.Parameter.empty)
    if said is inspect.Parameter.empty:
        return said
    names = getattr(inspect.unwrap(function), "__globals__", {})
    return get_type_hints(SimpleNamespace(__annotations__={"return": said}), names)["return"]


def _refuse(option: str, path: str, wanted: list[object]) -> None:
    names = " or ".join(dict.fromkeys(kind.__name__ for kind in _classes(wanted)))
    raise UserError(
        f"{option}: {path} must be a function that is annotated to return {names}, as in "
        f"`-> {names.split(' ')[0]}`, or a class below it"
    )
