"""What the answers of a rule depend on, as a digest: its source, and what it was made with."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import operator
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, final

_PLAIN = (types.NoneType, bool, int, float, complex, str, bytes)
_PARTS: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((list, tuple, set, frozenset), iter),
    dict: dict.items,
    re.Pattern: lambda pattern: (pattern.pattern, pattern.flags),
}
# What they call, and with what, stands in no file.
_REFUSED = (
    functools.partial,
    operator.attrgetter,
    operator.itemgetter,
    operator.methodcaller,
    types.MethodType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.ModuleType,
)


class UnseenError(Exception):
    """Something that answers may depend on cannot be seen; the message is a reason."""


@final
class _HiddenError(UnseenError):
    """No file tells it: it is not passed over among the attributes of a class either."""


def rule_fingerprint(rule: Callable[..., object]) -> str:
    """A digest that differs where a rule, or what it was made with, differs.

    It covers the module file of each function and class that is met, as a whole, and where in it
    they stand; defaults and attributes; of an instance, its attributes and all classes that its
    class is made from. What other modules hold is not seen. Answers are cached by this digest:
    another one for the same rule would lose them.

    Args:
        rule: a function that has captured no variables, or an instance that can be called. What
            they hold is plain data, regular expressions, or again such functions and instances.

    Raises:
        UnseenError: the rule or a value is of another kind, or its source cannot be read.
    """
    try:
        description = _describe(rule, "it", ())
    except RecursionError:
        raise UnseenError("what it holds is nested too deeply") from None
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()


def _describe(value: Any, what: str, within: tuple[int, ...]) -> list[object]:
    """A value by lists of texts; what is met ``within`` itself, by ids, by its depth."""
    kind = type(value)
    if kind in _PLAIN:
        return [kind.__name__, repr(value)]
    if id(value) in within:
        return ["again", within.index(id(value))]
    within = (*within, id(value))
    if kind in _PARTS:
        parts = [_describe(part, what, within) for part in _PARTS[kind](value)]
        in_order = sorted(parts, key=json.dumps) if kind in (set, frozenset) else parts
        return [kind.__name__, *in_order]
    if kind is types.CellType:
        return ["cell", *_describe(value.cell_contents, what, within)]
    if kind is types.FunctionType:
        return ["function", *_of_function(value, within)]
    if isinstance(value, type):
        return ["class", *_of_class(value, within)]
    if kind in _REFUSED:
        raise _HiddenError(f"{what} is a {kind.__name__}")
    if not callable(value):
        raise UnseenError(f"{what} is no plain data but of the class {kind.__name__}")
    return ["instance", *_of_instance(value, what, within)]


def _named(values: Mapping[str, object], what: str, within: tuple[int, ...]) -> list[object]:
    return [
        [name, _describe(value, f"{what} {name}", within)] for name, value in sorted(values.items())
    ]


def _of_function(function: types.FunctionType, within: tuple[int, ...]) -> list[object]:
    name, code = function.__name__, function.__code__
    if captured := [one for one in code.co_freevars if one != "__class__"]:  # of `super`
        raise _HiddenError(f"{name} has captured the variable {captured[0]}")
    return [
        *_place(function),
        _span(code),
        [["__class__", _describe(cell, name, within)] for cell in function.__closure__ or ()],
        _describe(function.__defaults__, f"a default of {name}", within),
        _describe(function.__kwdefaults__, f"a default of {name}", within),
        _named(vars(function), "its attribute", within),
    ]


def _of_instance(value: object, what: str, within: tuple[int, ...]) -> list[object]:
    for base in type(value).__mro__[:-1]:
        if base.__module__ == "builtins":  # it holds more than its attributes
            raise UnseenError(f"{what} is a {base.__name__} of its own kind")
    state: Any = object.__getstate__(value)
    if isinstance(state, tuple):
        raise _HiddenError(f"{what} has slots")
    return [_describe(type(value), what, within), _named(state or {}, "its option", within)]


def _of_class(value: type, within: tuple[int, ...]) -> list[object]:
    """All classes that it is made from; those of Python itself are known by name."""
    return [
        base.__qualname__
        if base.__module__ in ("abc", "builtins", "typing")
        else [*_place(base), _of_members(base, within)]
        for base in value.__mro__[:-1]
    ]


def _of_members(value: type, within: tuple[int, ...]) -> list[object]:
    """What its file does not tell: defaults of methods, attributes of a class in a function."""
    found: list[object] = []
    for name, member in sorted(vars(value).items()):
        function = _function_of(member)
        is_own = function is None and re.match(r"_abc_|__.*__$", name)
        if is_own or (function is not None and _is_generated(function)):
            continue
        what = f"its class's attribute {name}"
        try:
            found.append([name, _describe(function or member, what, within)])
        except UnseenError as error:
            is_local = "<locals>" in value.__qualname__
            if function or is_local or isinstance(error, _HiddenError):
                raise  # and else the module's file says how it is made
    return found


def _place(named: Any) -> list[object]:
    """Its name, a digest of the whole file that it stands in, and the line.

    The file also has the constants and the other functions that it may use.
    """
    try:
        lines, number = inspect.findsource(named)
    except (OSError, TypeError, SyntaxError, ValueError) as error:
        raise UnseenError("its source cannot be read") from error
    text = hashlib.sha256("".join(lines).encode(errors="surrogatepass")).hexdigest()
    return [named.__module__, named.__qualname__, text, number]


def _span(code: types.CodeType) -> list[int]:
    """Where in its file the body starts and ends: one line may hold several lambdas."""
    found = [
        ((line, column), (last, end))
        for line, last, column, end in code.co_positions()
        if line is not None and last is not None and column is not None and end
    ]
    if not found:  # Python was told to keep no columns
        return [code.co_firstlineno]
    starts, ends = zip(*found, strict=True)
    return [*min(starts), *max(ends)]


def _function_of(member: Any) -> types.FunctionType | None:
    """The function behind a member of a class; None where there is none."""
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    elif isinstance(member, property):
        member = member.fget
    elif isinstance(member, functools.cached_property):
        member = member.func
    return member if isinstance(member, types.FunctionType) else None


def _is_generated(function: types.FunctionType) -> bool:
    """Whether it was made from the class and stands in no file, as methods of a dataclass."""
    code = getattr(inspect.unwrap(function), "__code__", function.__code__)
    is_of_dataclasses = function.__globals__.get("__name__") == "dataclasses"
    return is_of_dataclasses or code.co_filename.startswith("<")
