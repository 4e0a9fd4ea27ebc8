"""``nlhf ask``: a page on which people choose between two answers."""

from nlhf_zoo.cli.ask.command import main

__all__ = ["main"]
