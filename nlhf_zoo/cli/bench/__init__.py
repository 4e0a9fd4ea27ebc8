"""``nlhf bench``: an algorithm beside all of ours, on a fixed set of games."""

from nlhf_zoo.cli.bench.command import main

__all__ = ["main"]
