"""``nlhf report``: one page for runs, which works offline."""

from nlhf_zoo.cli.report.command import main

__all__ = ["main"]
