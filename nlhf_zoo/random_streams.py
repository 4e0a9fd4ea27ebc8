"""Every random stream, by seed, process and step."""

from __future__ import annotations

import torch


def random_stream(seed: int, rank: int, step: int, device: torch.device) -> torch.Generator:
    """The random stream of one training step of one process.

    It depends on nothing but its arguments, so that a resumed run draws what the other would have
    drawn, and no two processes or steps draw the same (splitmix64 of the three).
    """
    state = 0
    for part in (seed, rank, step):
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return torch.Generator(device).manual_seed(state % 2**63)


def run_seed(seed: int | None) -> int:
    """The seed itself, or the run's where it is None."""
    return torch.initial_seed() if seed is None else seed
