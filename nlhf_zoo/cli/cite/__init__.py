"""``nlhf cite``: BibTeX of what a configuration runs."""

from nlhf_zoo.cli.cite.command import main

__all__ = ["main"]
