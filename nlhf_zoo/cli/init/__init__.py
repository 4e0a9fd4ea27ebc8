"""``nlhf init``: a commented configuration from the answers to four questions."""

from nlhf_zoo.cli.init.command import main

__all__ = ["main"]
