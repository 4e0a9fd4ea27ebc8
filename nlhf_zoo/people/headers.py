"""The head of a request, read strictly: what two readers may read as two things is none.

The standard library reads heads as it reads mail, which takes as long as the rest of a request.
"""

from __future__ import annotations

import re
from typing import BinaryIO

_LONGEST_LINE = 8 * 1024  # bytes
_MOST_LINES = 64
_REQUEST = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.([01])\r?\n")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*\r?\n")


def request_line(line: bytes) -> tuple[str, str, bool] | None:
    """Method, path and whether the connection stays open by itself; None where it is no HTTP."""
    found = _REQUEST.fullmatch(line)
    return found and (found[1].decode(), found[2].decode(), found[3] == b"1")


def read_fields(file: BinaryIO) -> dict[str, str] | None:
    """The fields of a head, by their names in small letters; None where they are none.

    No field may stand twice or go over several lines: of two lengths or two names of a host, the
    one that is checked must be the one that is meant.
    """
    fields: dict[str, str] = {}
    for _ in range(_MOST_LINES):
        line = file.readline(_LONGEST_LINE)
        if line in (b"\r\n", b"\n"):
            return fields
        found = _FIELD.fullmatch(line)
        if found is None:
            return None
        name = found[1].decode().lower()
        if name in fields:
            return None
        fields[name] = found[2].decode("latin-1")
    return None
