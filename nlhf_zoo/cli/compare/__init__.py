"""``nlhf compare``: several algorithms, seeds and games on one budget."""

from nlhf_zoo.cli.compare.command import main

__all__ = ["main"]
