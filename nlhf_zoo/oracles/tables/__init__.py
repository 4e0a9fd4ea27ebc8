"""Oracles that answer from a table."""
