"""Figures of games and runs: pure functions of arrays, in one style, colour-blind safe."""
