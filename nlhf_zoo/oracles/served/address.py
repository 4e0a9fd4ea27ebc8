"""Where an oracle is served, and the token that it asks for, which must never be seen."""

from __future__ import annotations

import ipaddress
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.judge.endpoint import is_plain, is_variable, refuse_address

LEAST = 16  # characters of a token
_LONGEST = 4096  # bytes of a file with a token


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where a token stands; it is read when it is needed, and never kept.

    Args:
        variable: of the environment; None for none.
        file: whose only line it is; None for none.
    """

    variable: str | None
    file: str | None

    def __post_init__(self) -> None:
        if self.variable is not None and self.file is not None:
            raise UserError("token_env and token_file both name a token: give one of them")
        if self.variable is not None and not is_variable(self.variable):
            raise UserError(  # it may be the token itself
                "token_env must be the name of an environment variable in capitals, such as "
                "NLHF_ORACLE_TOKEN, and not the token itself"
            )

    def __bool__(self) -> bool:
        return self.variable is not None or self.file is not None

    @property
    def place(self) -> str:
        """In words."""
        if self.file is not None:
            return f"the file {self.file}"
        return f"the environment variable {self.variable}"

    def read(self) -> str | None:
        """The token; None where there is to be none.

        Raises:
            UserError: it is not where it should be, or no token.
        """
        if self.file is not None:
            token = _first_line(Path(self.file))
        elif self.variable is not None:
            token = os.environ.get(self.variable, "")
        else:
            return None
        if not token:
            raise UserError(f"the oracle's token is not in {self.place}: put it there")
        if not is_plain(token) or len(token) < LEAST:
            raise UserError(
                f"the oracle's token in {self.place} must have {LEAST} letters, digits and signs "
                "at least, without blanks: `python -c 'import secrets; "
                "print(secrets.token_urlsafe())'` makes one"
            )
        return token


def _first_line(path: Path) -> str:
    try:
        if not path.is_file() or path.stat().st_size > _LONGEST:
            raise UserError(
                f"token_file {path} is no file of {_LONGEST} bytes at most: give one that holds "
                "the token alone"
            )
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"token_file {path} cannot be read: {type(error).__name__}") from None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, seen from itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_public(host: str) -> bool:
    """Whether a host is an address of the public internet, as far as its name shows."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def refuse_url(url: str) -> None:
    """Refuse what is no server's address, or one to which a token would go for all to read.

    Raises:
        UserError: why; a secret in it is not repeated.
    """
    example = "http://127.0.0.1:8765"
    refuse_address(url, "ServedOracle.url", example, "a token by token_env or token_file")
    parts = urlsplit(url)
    if parts.path not in ("", "/"):
        raise UserError(
            f"ServedOracle.url is the address of a server alone, such as {example}, and ends with "
            f"its port, but it is {url!r}"
        )
    if parts.scheme == "http" and is_public(parts.hostname or ""):
        raise UserError(
            f"ServedOracle.url {url} is an address of the public internet, and http:// encrypts "
            "nothing: take a private network, a tunnel, or https:// to a server that has it"
        )


def refuse_host(host: str, has_token: bool) -> None:
    """Refuse to serve where strangers could ask.

    Raises:
        UserError: what to do instead.
    """
    if is_public(host):
        raise UserError(
            f"--host {host} is an address of the public internet, and nothing is encrypted here: "
            "serve on a private network, or behind a server that has https://"
        )
    if not has_token and not is_loopback(host):
        raise UserError(
            f"--host {host} can be reached from other machines, and there is no token: give "
            "--token_env or --token_file, or serve on 127.0.0.1"
        )


def announce(url: str, token: TokenSource) -> None:
    """Say once which token goes where: it may be a file of somebody else that names both."""
    if token and (url, token) not in _ANNOUNCED:
        _ANNOUNCED.add((url, token))
        print(f"The oracle at {url} is sent the token in {token.place}", file=sys.stderr)


_ANNOUNCED: set[tuple[str, TokenSource]] = set()  # in this process
