"""Mistakes of the user's own making, runs that cannot go on, and how a message quotes a text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A configuration or a file that cannot be used.

    Its message is one sentence that says what is wrong, where, and what to do. The command line
    prints that sentence and ends with exit code 2; it never shows a traceback for it.
    """


class DivergenceError(UserError):
    """A run whose figures are no longer finite: the step or the learning rate is too large."""


class OracleStoppedError(UserError):
    """The oracle cannot be asked any more, or may not be: it is down, or its budget is spent.

    What was asked so far is kept: a run ends with a checkpoint, from which it can go on.
    """


class StoppedElsewhereError(OracleStoppedError):
    """The oracle of another process has stopped, and that process says why."""


_SHOWN = 60  # characters of a text in a message


def shown(text: str) -> str:
    """A text as a message quotes it, its end left out where it is long."""
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a misspelt name: the one that was meant, if any is like it."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {found[0]!r}?" if found else ""


def cause(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
