"""``nlhf from-trl``: arguments of TRL's trainers as one of our configurations."""

from nlhf_zoo.cli.from_trl.command import main

__all__ = ["main"]
