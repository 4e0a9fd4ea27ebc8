"""Where a judge is reached, and its key, which must never be seen."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from nlhf_zoo.errors import UserError

HIDDEN = "[hidden]"
_SHOWN = 200  # characters of what a server said in a message
_PART = 6  # characters of a key that may not be shown either, in a row
_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


class Endpoint(NamedTuple):
    """An OpenAI-compatible server. The key itself is read when it is needed, and never kept."""

    base_url: str  # such as http://localhost:8000/v1
    api_key_env: str | None  # environment variable with the key; None for a server without one

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine: then no proxy of the environment stands between."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def key(self) -> str | None:
        """The key, from the environment.

        Raises:
            UserError: the variable is not set, or its text cannot stand in a header.
        """
        name = self.api_key_env
        if name is None:
            return None
        key = os.environ.get(name, "")
        if not key:
            raise UserError(
                f"the judge's key is not in the environment: set the variable {name}, or set "
                "api_key_env to null for a server without one"
            )
        if not _is_plain(key):
            raise UserError(
                f"the judge's key in the environment variable {name} holds blanks, line ends or "
                "characters that no key has: set it again"
            )
        return key


def refuse_endpoint(base_url: str, api_key_env: str | None) -> None:
    """Refuse what is no address, or what holds a secret; a secret is not repeated."""
    try:
        parts = urlsplit(base_url)
        has_host, _ = bool(parts.hostname), parts.port
    except ValueError:
        raise UserError("the judge's base_url is no address: write http://HOST:PORT/v1") from None
    if "@" in parts.netloc:
        raise UserError(
            "the judge's base_url holds a user name or a password: leave them out, and give a key "
            "by the environment variable that api_key_env names"
        )
    if parts.query or parts.fragment or "?" in base_url or "#" in base_url:
        raise UserError(
            "the judge's base_url goes on after its path, with ? or #: leave that out, and give a "
            "key by the environment variable that api_key_env names"
        )
    if parts.scheme not in ("http", "https") or not has_host or not _is_plain(base_url):
        raise UserError(
            f"the judge's base_url must be http:// or https:// with a host, such as "
            f"http://localhost:8000/v1, but it is {base_url!r}"
        )
    if api_key_env is not None and not _NAME.fullmatch(api_key_env):
        raise UserError(  # it may be the key itself
            "the judge's api_key_env must be the name of an environment variable in capitals, such "
            "as OPENAI_API_KEY, and not the key itself"
        )


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def presentable(words: str, key: str | None) -> str:
    """What a server said, as a part of one sentence: the key hidden, on one line, not too long.

    A word that has six characters in a row in common with the key is hidden too: servers repeat
    parts of a key.
    """
    text = words[: 100 * _SHOWN]
    if key:
        text = text.replace(key, HIDDEN)
        parts = {key[i : i + _PART] for i in range(len(key) - _PART + 1)}
        text = re.sub(
            r"\S+", lambda word: HIDDEN if any(part in word[0] for part in parts) else word[0], text
        )
    text = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
