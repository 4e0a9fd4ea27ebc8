"""Where a judge is reached, and its key, which must never be seen."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import string
import sys
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from nlhf_zoo.errors import UserError

HIDDEN = "[hidden]"
SHOWN = 200  # characters of what a server said in a message
_PART = 6  # letters and digits of a key that may not be shown either, in a row
_LONGEST_PART = 15  # letters and digits in a row, of a name
_LETTERS = string.ascii_letters + string.digits
_RUN = re.compile(r"[A-Za-z0-9+/=_.:~-]{20,}")
# Characters that are written as %2F, \u002f, \x2f or &#47;, and a few letters between them.
_ESCAPE = r"(?:%[0-9a-f]{2}|\\+u[0-9a-f]{4}|\\+x[0-9a-f]{2}|&#x?[0-9a-f]+;)"
_FEW = rf"[a-z0-9]{{0,{_PART - 1}}}"
_ESCAPED = re.compile(rf"(?:{_FEW}{_ESCAPE}){{2,}}{_FEW}", re.I)
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
        if not is_plain(key):
            raise UserError(
                f"the judge's key in the environment variable {name} holds blanks, line ends or "
                "characters that no key has: set it again"
            )
        return key

    def announce(self) -> None:
        """Say once which key goes where: it may be a file of somebody else that names both."""
        if self not in _ANNOUNCED:
            _ANNOUNCED.add(self)
            parts = urlsplit(self.base_url)
            where = f"{parts.scheme}://{parts.netloc}"
            print(f"The judge at {where} is sent the key in {self.api_key_env}", file=sys.stderr)


_ANNOUNCED: set[Endpoint] = set()  # in this process


def refuse_endpoint(base_url: str, api_key_env: str | None) -> None:
    """Refuse what is no address, or what holds a secret; a secret is not repeated."""
    instead = "a key by the environment variable that api_key_env names"
    refuse_address(base_url, "the judge's base_url", "http://localhost:8000/v1", instead)
    if api_key_env is not None and not is_variable(api_key_env):
        raise UserError(  # it may be the key itself
            "the judge's api_key_env must be the name of an environment variable in capitals, such "
            "as OPENAI_API_KEY, and not the key itself"
        )


def refuse_address(url: str, what: str, example: str, instead: str) -> None:
    """Refuse what is no address of a server, or what holds a secret, which is not repeated.

    Args:
        url: the address.
        what: its name in a message.
        example: an address as it should be.
        instead: how a secret is given.

    Raises:
        UserError: what is wrong.
    """
    try:
        parts = urlsplit(url)
        has_host, _ = bool(parts.hostname), parts.port
    except ValueError:
        form = re.sub("//.*?(/|$)", r"//HOST:PORT\1", example)
        raise UserError(f"{what} is no address: write {form}") from None
    if "@" in parts.netloc:
        raise UserError(
            f"{what} holds a user name or a password: leave them out, and give {instead}"
        )
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise UserError(
            f"{what} goes on after its path, with ? or #: leave that out, and give {instead}"
        )
    if parts.scheme not in ("http", "https") or not has_host or not is_plain(url):
        raise UserError(
            f"{what} must be http:// or https:// with a host, such as {example}, but it is {url!r}"
        )


def is_variable(name: str) -> bool:
    """Whether this is the name of an environment variable in capitals."""
    return _NAME.fullmatch(name) is not None


def is_plain(text: str) -> bool:
    """Whether a text may stand in a header or an address: ASCII that is printed, no blanks."""
    return text.isascii() and text.isprintable() and " " not in text


def presentable(words: str, key: str | None, most: int = SHOWN) -> str:
    """What a server said, as a part of one sentence: the key hidden, on one line, not too long.

    A part of the key that has six of its letters and digits in a row is hidden too, whatever stands
    between them, and so are those of the key in base64, in hexadecimal and as part of an address:
    servers repeat keys in many ways. What is no word, but a long run of signs, or characters that
    are escaped in a row, may be another of these.
    """
    text = "".join(one if one.isprintable() else " " for one in words[: 100 * most])
    text = " ".join(text.split())[: 3 * most]
    if key:
        text = text.replace(key, HIDDEN)
        text = _without(text, _forms(key))
    text = _ESCAPED.sub(HIDDEN, text)
    text = _RUN.sub(lambda run: run[0] if _is_wordy(run[0]) else HIDDEN, text)
    return text if len(text) <= most else text[: most - 3] + "..."


def _forms(key: str) -> list[str]:
    """A key as a server may write it; in base64 by where it begins in a group of three bytes."""
    raw = key.encode()
    groups = [base64.b64encode(bytes(before) + raw).decode().rstrip("=") for before in range(3)]
    # Without the letters that hold bits of what stands before it, or behind.
    parts = [group[(0, 2, 3)[at] : -1] for at, group in enumerate(groups)]
    return [key, quote(key, safe=""), raw.hex(), *parts]


def _without(text: str, forms: list[str]) -> str:
    """A text without the parts whose letters and digits are also in one of the forms."""
    secrets = ["".join(filter(str.isalnum, form)).lower() for form in forms]
    parts = {one[i : i + _PART] for one in secrets for i in range(len(one) - _PART + 1)}
    letters = [place for place, one in enumerate(text) if one.isalnum()]
    plain = "".join(text[place].lower()[0] for place in letters)
    hidden: list[list[int]] = []  # first and last place of each part
    for at in range(len(plain) - _PART + 1):
        if plain[at : at + _PART] not in parts:
            continue
        first, last = letters[at], letters[at + _PART - 1]
        if hidden and first <= hidden[-1][1]:
            hidden[-1][1] = last
        else:
            hidden.append([first, last])
    for first, last in reversed(hidden):
        before, after = text[:first], text[last + 1 :]
        text = before.rstrip(_LETTERS) + HIDDEN + after.lstrip(_LETTERS)
    return text


def _is_wordy(run: str) -> bool:
    """Whether a run of letters, digits and signs may be a name or an address."""
    parts = [part for part in re.split(r"[^A-Za-z0-9]+", run) if part]
    return len(run) > 3 * len(parts) and all(
        len(part) <= _LONGEST_PART or (part.isalpha() and _capitals(part[1:]) <= len(part) / 5)
        for part in parts
    )


def _capitals(text: str) -> int:
    return sum(map(str.isupper, text))
