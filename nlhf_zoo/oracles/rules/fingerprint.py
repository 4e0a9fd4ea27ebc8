"""What the answers of a rule depend on, as a digest: its source, and what it was made with."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, final

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_SLOTS = (GetSetDescriptorType, MemberDescriptorType)  # their values are the instance's
_NO_SOURCE = "its source cannot be read"


@final
class UnseenError(Exception):
    """Something that answers may depend on cannot be seen; the message is a reason."""


def rule_fingerprint(function: Callable[..., object]) -> str:
    """A digest that differs where a rule, or what it was made with, differs.

    It covers the module file of each function and class that is met, as a whole, and where in it
    they stand; free variables, defaults and attributes; of an instance, its attributes and all
    classes that its class is made from; of functools.partial, the arguments. Values are plain data,
    regular expressions, and again functions, classes and instances that can be called. What other
    modules hold is not seen.

    Args:
        function: what is called, as it is now.

    Raises:
        UnseenError: source or a value cannot be read.
    """
    try:
        found = _Description().of_holder(function, "it")
    except RecursionError:
        raise UnseenError("what it holds is nested too deeply") from None
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


class _Description:
    """Describes values by lists of texts; what is met within itself by its depth."""

    def __init__(self) -> None:
        self._within: list[int] = []
        self._kinds: Mapping[type, Callable[[Any, str], list[object]]] = {
            list: self._of_items,
            tuple: self._of_items,
            dict: lambda value, where: self._of_items(value.items(), where),
            set: self._of_set,
            frozenset: self._of_set,
            re.Pattern: lambda value, where: self._of_items([value.pattern, value.flags], where),
            CellType: self._of_cell,
            ModuleType: lambda value, where: [value.__name__],
            FunctionType: self._of_function,
            MethodType: self._of_method,
            BuiltinFunctionType: self._of_builtin,
            MethodDescriptorType: self._of_builtin,
            functools.partial: self._of_partial,
        }

    def of(self, value: object, where: str) -> list[object]:
        """Describe a value.

        Args:
            value: any.
            where: what it is of the rule, in a reason, as "its option NAME".
        """
        kind = type(value)
        if kind in _PLAIN:
            return [kind.__name__, repr(value)]
        if id(value) in self._within:
            return ["again", self._within.index(id(value))]
        self._within.append(id(value))
        try:
            if kind in self._kinds:
                return [kind.__name__, *self._kinds[kind](value, where)]
            if isinstance(value, type):
                return ["class", *self._of_class(value)]
            if not callable(value):
                raise UnseenError(f"{where} is no plain data but of the class {kind.__name__}")
            return ["instance", *self._of_instance(value, where)]
        finally:
            self._within.pop()

    def of_holder(self, value: object, where: str) -> list[object]:
        """Describe what is called, or whose method is: it may be an instance of any class."""
        if type(value) in (*_PLAIN, *self._kinds) or isinstance(value, type) or callable(value):
            return self.of(value, where)
        return ["instance", *self._of_instance(value, where)]

    def _of_items(self, values: Iterable[object], where: str) -> list[object]:
        return [self.of(value, where) for value in values]

    def _of_set(self, values: Iterable[object], where: str) -> list[object]:
        return sorted(self._of_items(values, where), key=json.dumps)

    def _of_named(self, values: Mapping[str, object], what: str) -> list[object]:
        return [[name, self.of(value, f"{what} {name}")] for name, value in sorted(values.items())]

    def _of_cell(self, cell: CellType, where: str) -> list[object]:
        try:
            return self.of(cell.cell_contents, where)
        except ValueError:  # of a variable that has no value yet
            return []

    def _of_function(self, function: FunctionType, where: str) -> list[object]:
        code = function.__code__
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        return [
            *_place(function),
            _span(code),
            self._of_named(cells, "its free variable"),
            self.of(function.__defaults__, f"a default of {function.__name__}"),
            self.of(function.__kwdefaults__, f"a default of {function.__name__}"),
            self._of_named(vars(function), "its attribute"),
        ]

    def _of_method(self, method: MethodType, where: str) -> list[object]:
        return [self.of(method.__func__, where), self.of_holder(method.__self__, where)]

    def _of_builtin(self, function: Any, where: str) -> list[object]:
        """One of Python's own; one of another module written in C has a source of its own."""
        holder = getattr(function, "__self__", None)
        if holder is not None and not isinstance(holder, ModuleType):
            return [function.__name__, self.of_holder(holder, where)]
        module = getattr(function, "__objclass__", function).__module__ or ""
        if module.partition(".")[0] not in sys.stdlib_module_names:
            raise UnseenError(_NO_SOURCE)
        return [module, function.__qualname__]

    def _of_partial(self, value: functools.partial[object], where: str) -> list[object]:
        return [
            self.of_holder(value.func, where),
            self.of(value.args, "an argument of partial"),
            self._of_named(value.keywords, "its argument"),
            self._of_named(vars(value), "its attribute"),
        ]

    def _of_instance(self, value: object, where: str) -> list[object]:
        bases = [base for base in type(value).__mro__[:-1] if base.__module__ == "builtins"]
        if bases:  # it holds more than its attributes
            raise UnseenError(f"{where} is a {bases[0].__name__} of its own kind")
        state: Any = object.__getstate__(value)  # attributes; and slots beside, if there are any
        parts = state if isinstance(state, tuple) else (state,)
        return [
            self.of(type(value), where),
            *(self._of_named(part or {}, "its option") for part in parts),
        ]

    def _of_class(self, value: type) -> list[object]:
        """All classes that it is made from; those of Python itself are known by name."""
        found: list[object] = []
        for base in value.__mro__[:-1]:
            if base.__module__ in ("abc", "builtins", "typing"):
                found.append(base.__qualname__)
            else:
                found.append([*_place(base), self._of_members(base)])
        return found

    def _of_members(self, value: type) -> list[object]:
        """What its file does not tell: closures of methods, attributes of a class in a function."""
        is_local = "<locals>" in value.__qualname__
        found: list[object] = []
        for name, member in sorted(vars(value).items()):
            function = _function_of(member)
            if function is None and (name.startswith("_abc_") or _is_dunder(name)):
                continue
            if isinstance(member, _SLOTS) or _is_generated(function):
                continue
            try:
                one = self.of(function or member, f"its class's attribute {name}")
            except UnseenError:
                if is_local or function is not None:
                    raise
                continue  # the module's file says how it is made
            found.append([name, one])
        return found


def _place(named: Any) -> list[object]:
    """Its name, a digest of the whole file that it stands in, and the line.

    The file also has the constants and the other functions that it may use.
    """
    try:
        lines, number = inspect.findsource(named)
    except (OSError, TypeError, SyntaxError, ValueError) as error:
        raise UnseenError(_NO_SOURCE) from error
    text = hashlib.sha256("".join(lines).encode(errors="surrogatepass")).hexdigest()
    return [named.__module__, named.__qualname__, text, number]


def _span(code: CodeType) -> list[int]:
    """Where in its file the body starts and ends: one line may hold several lambdas."""
    found = [
        (first, column, last, end)
        for first, last, column, end in code.co_positions()
        if first is not None and last is not None and column is not None and end
    ]
    if not found:  # Python was told to keep no columns
        return [code.co_firstlineno]
    return [*min(one[:2] for one in found), *max(one[2:] for one in found)]


def _function_of(member: object) -> FunctionType | None:
    """The function behind a member of a class; None where there is none."""
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    elif isinstance(member, property):
        member = member.fget
    elif isinstance(member, functools.cached_property):
        member = member.func
    return member if isinstance(member, FunctionType) else None


def _is_generated(function: FunctionType | None) -> bool:
    """Whether it was made from the class and stands in no file, as methods of a dataclass."""
    if function is None:
        return False
    in_no_file = function.__code__.co_filename.startswith("<")
    return in_no_file or function.__globals__.get("__name__") == "dataclasses"


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")
