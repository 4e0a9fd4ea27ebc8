"""Version numbers of the players' weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


class Versions(Mapping[str, int]):
    """A number for each player's weights: equal numbers mean equal weights.

    It changes when the weights move, and is copied when they are. By it samples say which weights
    drew them, and a product is remembered for as long as its players do not move.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __getitem__(self, player: str) -> int:
        return self._numbers[player]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def of(self, player: str) -> int:
        """A player's number: -1 for the reference, which never moves, 0 for one that has not."""
        return -1 if player == "reference" else self._numbers.get(player, 0)

    def moved(self, player: str) -> None:
        """A player has got weights that none had before."""
        self._numbers[player] = max([0, *self._numbers.values()]) + 1

    def copied(self, source: str, target: str) -> None:
        """A player has got another's weights."""
        self._numbers[target] = self.of(source)

    def returned(self, player: str, number: int) -> None:
        """A player has got back the weights that had this number."""
        self._numbers[player] = number

    def load(self, numbers: Mapping[str, int]) -> None:
        """Take all numbers from a checkpoint."""
        self._numbers = dict(numbers)
