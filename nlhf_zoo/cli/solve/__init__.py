"""``nlhf solve``: the equilibrium of a table or of votes, with its certificate."""

from nlhf_zoo.cli.solve.command import main

__all__ = ["main"]
