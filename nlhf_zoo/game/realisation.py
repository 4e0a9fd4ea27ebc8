"""How a proximal step is realised: exactly, or by gradient steps on a surrogate."""

from __future__ import annotations

from abc import ABC

# One training step plays at most this many entries of tables and keeps at most this many
# log-probabilities,
# so that it lasts about a second and its trajectory stays below 64 MB, whatever the size of the
# game.
_TABLE_ENTRIES = 4_000_000_000
_TRAJECTORY_ENTRIES = 8_000_000


class Realisation(ABC):
    """How a proximal step is realised."""

    closed_form: bool


class ClosedForm(Realisation):
    """Exactly, for policies with one logit an action; many rounds in one training step.

    Args:
        rounds_per_step: rounds that one training step plays at most; large games play fewer.
    """

    closed_form = True

    def __init__(self, rounds_per_step: int = 1000) -> None:
        if rounds_per_step < 1:
            raise ValueError(f"rounds_per_step must be at least 1, but it is {rounds_per_step}")
        self.rounds_per_step = rounds_per_step

    def rounds(self, num_prompts: int, num_actions: int) -> int:
        """Rounds of one training step; of the game's size alone, so that runs resume exactly."""
        size = num_prompts * num_actions
        return max(
            1,
            min(
                self.rounds_per_step,
                _TRAJECTORY_ENTRIES // size,
                _TABLE_ENTRIES // (size * num_actions),
            ),
        )


class GradientSteps(Realisation):
    """By gradient steps of the game's optimiser on the algorithm's loss."""

    closed_form = False
