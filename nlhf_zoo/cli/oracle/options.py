"""Options of `nlhf oracle` that are not the oracle's own."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from nlhf_zoo.errors import UserError


class ReportOptions(argparse.Namespace):
    """What was asked for; the command's help says what each option is."""

    responses: str | None
    num_prompts: int
    num_responses: int
    max_queries: int | None
    output: Path | None
    figure: Path | None


def parse(args: Sequence[str]) -> tuple[ReportOptions, list[str]]:
    """The options, each with a value that it may have, and all other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--num_prompts", type=int, default=8)
    parser.add_argument("--num_responses", type=int, default=4)
    parser.add_argument("--max_queries", type=int)
    parser.add_argument("--responses")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--figure", type=Path)
    try:
        options, rest = parser.parse_known_args(args, ReportOptions())
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from error
    for name, least in (("num_prompts", 1), ("num_responses", 2), ("max_queries", 1)):
        number = getattr(options, name)
        if number is not None and number < least:
            raise UserError(f"--{name} must be at least {least}, but it is {number}")
    _refuse_file(options.output, "--output", ".json", options.responses)
    _refuse_file(options.figure, "--figure", ".png", options.responses)
    return options, rest


def _refuse_file(path: Path | None, option: str, ending: str, source: str | None) -> None:
    if path is None:
        return
    folder = path.parent
    if path.suffix != ending:
        raise UserError(f"{option} {path} must end with {ending}")
    if not folder.is_dir():
        raise UserError(f"{option} {path}: the folder {folder} does not exist, create it first")
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path} cannot be written")
    if source is not None and path.resolve() == Path(source).resolve():
        raise UserError(f"{option} {path} would overwrite the responses: give another name")
