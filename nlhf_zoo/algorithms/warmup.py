"""A learning rate that warms up and decays over a number of steps, as other trainers have it."""

from __future__ import annotations

import math
from typing import Literal, get_args

from nlhf_zoo.errors import UserError

Decay = Literal["constant", "linear", "cosine"]


class WarmupDecay:
    r"""The factor of a learning rate, for torch's LambdaLR.

    .. math:: t / w \; (t < w), \qquad
        1, \quad 1 - u, \quad (1 + \cos \pi u) / 2, \qquad u = (t - w) / (n - w)

    with t the optimiser steps that are done, w those of the warm-up and n all of them: constant,
    linear and cosine, as transformers' schedules of these names. From step n on it stays.

    Args:
        steps: n.
        warmup_steps: w.
        decay: what follows the warm-up.

    Raises:
        UserError: a number is out of its range.

    Example:
        >>> [WarmupDecay(steps=4, warmup_steps=2)(step) for step in range(5)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    def __init__(self, steps: int, warmup_steps: int = 0, decay: Decay = "linear") -> None:
        if steps < 1 or warmup_steps < 0:
            raise UserError(
                "WarmupDecay needs steps of at least 1 and warmup_steps of at least 0, but they "
                f"are {steps} and {warmup_steps}"
            )
        if decay not in get_args(Decay):
            raise UserError(f"WarmupDecay.decay is one of {get_args(Decay)}, not {decay!r}")
        self.steps = steps
        self.warmup_steps = warmup_steps
        self.decay = decay

    def __call__(self, step: int) -> float:
        """The factor after so many optimiser steps."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        spent = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return 1 - spent if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * spent))
