"""``nlhf tournament``: policies and answers against each other."""

from nlhf_zoo.cli.tournament.command import main

__all__ = ["main"]
