"""How a command ends that fails: one sentence where the user can mend it, a traceback's file else.

This is the one place where exceptions become sentences. Nothing heavy is imported for it: what a
library raises can only be met where that library is loaded.
"""

from __future__ import annotations

import errno
import re
import sys
import tempfile
import traceback
from typing import NoReturn

from nlhf_zoo.errors import UserError

# Exit codes; docs/command_line.md has the table.
USER = 2
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h

_MEMORY = re.compile(r"can't allocate memory|out of memory|Unable to allocate|bad_alloc", re.I)


def in_words(error: BaseException) -> tuple[str, int]:
    """What is said of an exception elsewhere, and the exit code that it ends a command with."""
    if isinstance(error, SystemExit):
        return f"it has ended itself, with exit code {error.code}", USER
    if (sentence := sentence_of(error)) is not None:
        return " ".join(sentence.split()), USER
    return f"unexpected {_said(error)}", UNEXPECTED


def _said(error: BaseException) -> str:
    return " ".join(traceback.format_exception_only(error)[-1].split())[:200]


def end(error: Exception, where: str = "") -> NoReturn:
    """End the command for an exception: exit code 2 and one sentence, or 70 and a traceback's file.

    Args:
        error: the exception.
        where: the beginning of the sentence, of several processes.

    Raises:
        SystemExit: always.
    """
    if (sentence := sentence_of(error)) is not None:
        print(f"nlhf: error: {where}{' '.join(sentence.split())}", file=sys.stderr)
        raise SystemExit(USER) from None
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="replace", prefix="nlhf-", suffix=".txt", delete=False
        ) as file:
            file.write(text)
    except OSError:  # a full disk: nothing is lost
        print(text, file=sys.stderr)
        place = "above"
    else:
        place = f"in {file.name}"
    print(
        f"nlhf: error: {where}unexpected {_said(error)}; the traceback is {place}: "
        "please report it, unless it ends in code of your own",
        file=sys.stderr,
    )
    raise SystemExit(UNEXPECTED) from error


def sentence_of(error: BaseException) -> str | None:
    """What the user is told of an exception of their own making; None where it is none."""
    if isinstance(error, UserError):
        return str(error) or type(error).__name__
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "ProcessRaisedException" in kinds:  # with the traceback of another process
        messages = re.findall(r"^nlhf_zoo\.errors\.\w+: (.+)$", str(error), re.MULTILINE)
        return messages[-1] if messages else None
    if "OmegaConfBaseException" in kinds:
        return f"an interpolation in the configuration fails: {error}"
    if kinds & {"MisconfigurationException", "ArgumentError"}:
        from nlhf_zoo.cli.parser import shorten

        return shorten(str(error)) or type(error).__name__
    return _of_the_machine(error)


def _of_the_machine(error: BaseException) -> str | None:
    """The sentence for what files and memory raise."""
    said = str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError | RuntimeError) and _MEMORY.search(said)
    ):
        return f"there is not enough memory: {said or 'make the game or the batch smaller'}"
    if isinstance(error, OSError):  # a full disk, a folder that may not be written to
        file = error.filename if isinstance(error.filename, str) else ""
        if error.errno == errno.ENAMETOOLONG:
            return f"a name of a file is too long: {file[:60]}..., make it shorter"
        return f"{file or 'input or output'}: {error.strerror or said}"
    if isinstance(error, ValueError) and "embedded null" in said:
        return "a name of a file holds a NUL character: write it without"
    if isinstance(error, UnicodeEncodeError) and "surrogates" in said:
        return "a name or a text holds half a character, which UTF-8 cannot write: write it anew"
    if isinstance(error, ValueError) and said.startswith("Tried to step "):  # a schedule of torch
        return f"model.lr_scheduler ends before the run: {said}"
    if isinstance(error, RuntimeError) and said.startswith("Error(s) in loading state_dict"):
        return f"the checkpoint does not fit the model: {said}"
    return None
