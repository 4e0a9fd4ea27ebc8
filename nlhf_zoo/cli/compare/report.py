"""The page of a comparison, in the form of those of ``nlhf report``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import yaml

from nlhf_zoo.cli.compare.tables import EntryResult
from nlhf_zoo.cli.report import page
from nlhf_zoo.cli.report.hiding import shown
from nlhf_zoo.cli.report.page import Html
from nlhf_zoo.cli.report.reading import rows_of
from nlhf_zoo.cli.resuming import versions_now
from nlhf_zoo.cli.yaml_rules import dump
from nlhf_zoo.metrics.figures.canvas import png_uri

_ROWS = 400  # of the table of all games and seeds


def comparison_page(
    results: Sequence[EntryResult], printed: str, rows: str, figure: Path, title: str
) -> str:
    """A page about a comparison.

    Args:
        results: of all entries.
        printed: the tables as they are printed.
        rows: results.csv.
        figure: comparison.png.
        title: what is said of the comparison above all.
    """
    ends = rows_of(io.StringIO(rows, newline=""))
    more = len(ends) - _ROWS
    every = [page.folded(f"{min(len(ends), _ROWS):,} rows", page.rows_of(ends[:_ROWS]))]
    every += [page.note(f"{more:,} more are in results.csv.")] if more > 0 else []
    sections = {
        "Results": page.code(printed),
        "Curves": page.pictures([page.picture(png_uri(figure), "Exploitability against queries")]),
        "Each game and seed": page.joined(every),
        "Configuration": page.joined(_configurations(results)),
        "Versions": page.table(("package", "version"), versions_now().items()),
    }
    return page.page(title, sections)


def _configurations(results: Sequence[EntryResult]) -> list[Html]:
    """What each entry played, the section `model` of a file."""
    return [
        page.folded(
            f"{result.entry.label} on {result.title}",
            page.code(dump(shown(yaml.safe_load(result.entry.section)))),
        )
        for result in results
    ]
