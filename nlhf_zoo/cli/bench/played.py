"""What a method did under one condition of a part, such as a temperature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.cli.bench.results import Figure

_POINTS = 24  # of a curve


@dataclass(frozen=True, slots=True)
class Played:
    """What a method did under one condition, on all games.

    Args:
        method: its name.
        condition: such as "β = 0.1".
        final: figures when the budget was spent, by measure, and the name and the seed of the game.
        curve: exploitability at `points` of queries [points, games]; None where it is not known.
    """

    method: str
    condition: str
    final: dict[str, dict[tuple[str, int], float]]
    curve: NDArray[np.float64] | None = None

    @property
    def figures(self) -> list[Figure]:
        """The final figures, as a file of results has them."""
        return [
            Figure(self.method, f"{game}, {self.condition}", seed, measure, value)
            for measure, values in self.final.items()
            for (game, seed), value in values.items()
        ]


def points(queries: int) -> list[int]:
    """The queries at which exploitability is measured; the last one is the budget."""
    return sorted({round(q) for q in np.geomspace(max(1, queries // 200), queries, _POINTS)})
