"""Rows of text: prompts, pairs, listed responses."""
