"""Nash learning from human feedback in PyTorch Lightning: algorithms around one online game."""

__version__ = "0.1.0"
