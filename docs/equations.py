"""Shows the equations of docstrings (``.. math::``) as blocks: no page loads a renderer."""

from __future__ import annotations

import re
from typing import Any

import griffe

# The directive, and the deeper lines that continue it.
MATH = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 +\S.*)*)", re.MULTILINE)


def _block(match: re.Match[str]) -> str:
    indent = match[1]
    lines = [line.strip() for line in match[2].splitlines()]
    return "\n".join(["", *(indent + line for line in ["```latex", *lines, "```"]), ""])


class Equations(griffe.Extension):
    """Rewrites each docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = MATH.sub(_block, obj.docstring.value)
