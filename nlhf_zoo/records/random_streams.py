"""Every random stream, by purpose, seed, process and step."""

from __future__ import annotations

import os
import zlib
from typing import Literal

import torch

Purpose = Literal[
    "training",
    "validation",
    "probe",
    "players",
    "generator",
    "oracle",
    "report",
    "capabilities",
    "collapse",
    "rollout",
    "order",
    "held out",
    "design",
    "sample",
    "annotators",
    "prior",
    "answers",
    "best response",
    "shown",
    "certificate",
]


def random_stream(
    seed: int,
    rank: int,
    step: int,
    device: torch.device,
    purpose: Purpose = "training",
    part: int | None = None,
) -> torch.Generator:
    """The random stream of one step of one process.

    It depends on nothing but its arguments, so that a resumed run draws what the other would have
    drawn, and no two processes, steps or purposes draw the same (splitmix64 of all of them).

    Args:
        seed: the run's, or a fixed one.
        rank: number of the process.
        step: number of the training step, or of what else draws one after the other.
        device: where numbers are drawn.
        purpose: what they are drawn for.
        part: of what is drawn in several parts, or several times, which one.
    """
    parts = [seed, rank, step]
    if part is not None:
        parts.append(part)
    if purpose != "training":
        parts.append(zlib.crc32(purpose.encode()))
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return torch.Generator(device).manual_seed(state % 2**63)


def training_seed() -> int:
    """The seed that ``seed_everything`` has left for this process; 0 without one."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def run_seed(seed: int | None) -> int:
    """The seed itself, or the run's where it is None."""
    return torch.initial_seed() if seed is None else seed
