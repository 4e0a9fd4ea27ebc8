"""The command line: one module or folder a command."""

from nlhf_zoo.cli.main import main

__all__ = ["main"]
