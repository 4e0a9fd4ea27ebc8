"""Oracles around other oracles."""
