"""Reward and pair models as oracles."""
