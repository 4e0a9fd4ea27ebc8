"""Rules: Python functions that judge, and ready-made ones."""

from nlhf_zoo.oracles.rules.examples import LengthBetween, Mentions, shorter_wins

__all__ = ["LengthBetween", "Mentions", "shorter_wins"]
