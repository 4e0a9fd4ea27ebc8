"""Options of `nlhf oracle` that are not the oracle's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nlhf_zoo.errors import UserError


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What was asked for.

    Args:
        responses: file of sample responses.
        num_prompts: prompts to draw responses to.
        num_responses: responses to each.
        max_queries: pairs to ask about, at most.
        output: file of the report.
        figure: file of the figure.
    """

    responses: str | None
    num_prompts: int
    num_responses: int
    max_queries: int | None
    output: Path | None
    figure: Path | None

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before anything is loaded.

        Raises:
            UserError: something cannot.
        """
        for name, least in (("num_prompts", 1), ("num_responses", 2), ("max_queries", 1)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise UserError(f"--{name} must be at least {least}, but it is {number}")
        _refuse_file(self.output, "--output", ".json", self.responses)
        _refuse_file(self.figure, "--figure", ".png", self.responses)


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
