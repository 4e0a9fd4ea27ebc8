"""Configurations as they may be shown: no key, and no address with one in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from nlhf_zoo.oracles.judge.endpoint import HIDDEN, presentable

# Keys of options whose text is a secret; `api_key_env` and `token_file` name where one lies.
_SECRET = re.compile(
    r"(?i)(^|[_-])(api_?key|secret|password|passwd|authorization|bearer|credential\w*)$|^(\w+_)?token$"
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.I)
_MOST = 100_000  # characters of a line


def shown(value: Any, key: str = "") -> Any:
    """A configuration without what nobody may see.

    Of an address the user, the password and all behind `?` or `#` are hidden; of texts, what is no
    word but a long run of signs, as keys are; and any text behind the name of a secret.
    """
    if isinstance(value, Mapping):
        return {name: shown(part, str(name)) for name, part in value.items()}
    if isinstance(value, list):
        return [shown(part, key) for part in value]
    if not isinstance(value, str):
        return value
    if _SECRET.search(key):
        return HIDDEN
    return "\n".join(_line(line) for line in value.split("\n"))


def _line(line: str) -> str:
    """One line of a text, as it may be shown."""
    whole = _ADDRESS.sub(lambda found: _address(found[0]), line)
    return re.sub(r"\S{20,}", lambda run: presentable(run[0], None, _MOST), whole)


def _address(address: str) -> str:
    """An address, without what only those who may enter know."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return HIDDEN
    host = parts.netloc.rpartition("@")
    place = f"{HIDDEN}@{host[2]}" if host[1] else parts.netloc
    behind = f"?{HIDDEN}" if parts.query or parts.fragment else ""
    return f"{parts.scheme}://{place}{parts.path}{behind}"
