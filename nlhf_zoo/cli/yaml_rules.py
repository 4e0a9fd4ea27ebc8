"""YAML as commands read and write it: what version 1.1 and 1.2 read differently is refused.

PyYAML reads version 1.1, where `010` is 8, `1:30` is 90 and `no` is false, and keeps the last of
two equal keys. On a command line these are 10 and texts. Files that commands have written are read
by the rules that wrote them; what no command writes is refused in them, too, for they are edited.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from nlhf_zoo.errors import UserError

_SAVED = "# lightning.pytorch=="  # how the files begin that commands write
LARGEST = 1_000_000  # bytes of a configuration, or of a part
_TEXT = "tag:yaml.org,2002:str"
_MOST_VALUES = 100_000  # of a file, with what its aliases repeat

_TRUE, _FALSE = r"yes|Yes|YES|on|On|ON", r"no|No|NO|off|Off|OFF"
_OCTAL = re.compile(r"[-+]?0[0-9_]+|[-+]?0o[0-7]+")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_BINARY = re.compile(r"[-+]?0b[01_]+")
# Numbers of version 1.2, and of jsonargparse, that are texts in version 1.1.
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+")


def is_saved(text: str) -> bool:
    """Whether a command has written this."""
    return text.startswith(_SAVED)


def loader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A loader for jsonargparse: its own, but of what a command has written; none of what is huge.

    So that files which nobody has looked at, because of their size, cannot stand in for parts.
    """

    def load(text: str) -> Any:
        if len(text.encode(errors="surrogatepass")) > LARGEST:
            raise yaml.YAMLError(f"it has more than {LARGEST:,} bytes")
        return yaml.safe_load(text) if is_saved(text) else read(text)

    return load


def refuse_unclear(text: str, where: str) -> None:
    """Refuse a file of which one cannot say what it means; ``where`` begins the sentence.

    Args:
        text: its content, which is YAML.
        where: it, as the sentence names it.

    Raises:
        UserError: a key stands twice, a value is read in two ways, an alias stands within what it
            repeats, or there are far too many values.
        yaml.YAMLError: it is no YAML.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        size = 0 if root is None else _size(root, {}, where, saved=is_saved(text))
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply: write it flatter") from error
    if size > _MOST_VALUES:
        raise UserError(f"{where} holds {size:,} values, which its aliases repeat: write fewer")


def _size(node: yaml.Node, sizes: dict[int, int | None], where: str, saved: bool) -> int:
    """How many values a node holds; each is looked at once."""
    line = node.start_mark.line + 1
    if id(node) in sizes:
        if (known := sizes[id(node)]) is None:
            raise UserError(f"{where} has a value within itself, by an alias, from line {line} on")
        return known
    sizes[id(node)] = None
    size = 1
    if isinstance(node, yaml.ScalarNode):
        # Nothing has written a number or a truth like that; a text like that, version 0.1 has.
        if node.style is None and not (saved and node.tag == _TEXT):
            _refuse_scalar(node.value, f"{where}, line {line}")
    elif isinstance(node, yaml.MappingNode):
        _refuse_twice(node, where)
        size += sum(_size(part, sizes, where, saved) for pair in node.value for part in pair)
    else:
        size += sum(_size(part, sizes, where, saved) for part in node.value)
    sizes[id(node)] = size
    return size


def _refuse_twice(node: yaml.MappingNode, where: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{where}, line {line} has a key that is no plain name: give it one")
        if key.value in seen:
            raise UserError(
                f"{where}: {key.value!r} stands twice, again in line {line}: give each once"
            )
        seen.add(key.value)


def _refuse_scalar(value: str, where: str) -> None:
    """Refuse what one version of YAML takes for a number or a truth, and another does not."""
    instead = ""
    if re.fullmatch(_TRUE, value):
        instead = "true"
    elif re.fullmatch(_FALSE, value):
        instead = "false"
    elif _OCTAL.fullmatch(value):
        instead = "a number without the zero before it"
    elif _BASE_60.fullmatch(value) or _BINARY.fullmatch(value):
        instead = "a decimal number"
    if instead:
        raise UserError(
            f"{where}: versions of YAML read {value} as different things: write {instead}, or "
            f'"{value}" in quotes for the text'
        )


class _Dumper(yaml.SafeDumper):
    """Puts each text in quotes that another reader would take for a number."""


for _tag, _pattern in (("float", _FLOAT), ("int", _OCTAL)):
    _Dumper.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern.pattern})$"), list("-+.0123456789")
    )


def dump(data: Any) -> str:
    """YAML that reads as what it was under either version."""
    return yaml.dump(
        data, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False
    )
