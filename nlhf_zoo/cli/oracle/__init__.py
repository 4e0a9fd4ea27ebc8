"""``nlhf oracle``: what an oracle says of sample responses."""

from nlhf_zoo.cli.oracle.command import main

__all__ = ["main"]
