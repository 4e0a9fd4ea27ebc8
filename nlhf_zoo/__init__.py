"""Nash learning from human feedback in PyTorch Lightning: a zoo of algorithms around one online game."""

__version__ = "0.1.0"
