"""A rule made of a score: whoever scores higher is the likelier winner."""

from __future__ import annotations

import math
from collections.abc import Callable

from nlhf_zoo.errors import UserError


class BradleyTerryRule:
    r"""P(first > second) = sigma((s(first) - s(second)) / temperature), for `RuleOracle`.

    Args:
        function: s of (prompt, response), any finite number; None where it has none.
        temperature: divides differences of scores.

    Example:
        >>> BradleyTerryRule(lambda prompt, response: len(response))("", "four", "four")
        0.5
    """

    def __init__(
        self, function: Callable[[str, str], float | None], temperature: float = 1.0
    ) -> None:
        if not (math.isfinite(temperature) and temperature > 0):
            raise UserError(
                "the rule BradleyTerryRule needs a finite temperature above 0, "
                f"but it is {temperature}"
            )
        self.function = function
        self.temperature = temperature

    def score(self, prompt: str, response: str) -> float | None:
        """The score of a response over the temperature."""
        score = self.function(prompt, response)
        return None if score is None else score / self.temperature

    def __call__(self, prompt: str, first: str, second: str) -> float | None:
        """P(first > second)."""
        ours, theirs = self.score(prompt, first), self.score(prompt, second)
        if ours is None or theirs is None:
            return None
        return 0.5 + 0.5 * math.tanh((ours - theirs) / 2)
