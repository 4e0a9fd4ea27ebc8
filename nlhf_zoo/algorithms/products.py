"""How many products P o a round asks for: those of players that have not moved are remembered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate, count, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nlhf_zoo.algorithms.base import PolicyOptimizer

_Name = tuple[tuple[int, float], ...]  # of a mixture: versions of its players, and weights
_ROUNDS = 3  # of which the last is counted: by then players have moved as they always do
_BETA = 1e-9  # the count is the same at every beta, and every plan admits a small one


class _Versions:
    """Numbers of the players' weights, equal where these are; a stand-in for the players."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {"reference": -1}
        self._last = 0

    def of(self, player: str) -> int:
        return self._of.get(player, 0)

    def set(self, player: str, version: int) -> None:
        self._of[player] = version

    def moved(self, player: str) -> None:
        self._last += 1
        self._of[player] = self._last

    def copy_(self, source: str, target: str) -> None:
        self._of[target] = self.of(source)

    def lerp_(self, source: str, target: str, weight: float) -> None:
        if weight == 1:
            self.copy_(source, target)
        else:
            self.moved(target)

    def name(self, mixture: Mapping[str, float]) -> _Name:
        return tuple(sorted((self.of(player), w) for player, w in mixture.items() if w))


def products_of_a_round(algorithm: PolicyOptimizer) -> int:
    """Play the plans of some rounds with numbers in place of weights, and count what is new."""
    return [*islice(_products(algorithm), _ROUNDS)][-1]


def products_of_rounds(algorithm: PolicyOptimizer, rounds: int) -> list[int]:
    """The products that the first 1, 2, ..., ``rounds`` rounds ask for together."""
    return [*accumulate(islice(_products(algorithm), rounds))]


def _products(algorithm: PolicyOptimizer) -> Iterator[int]:
    """The products that each round asks for."""
    versions = _Versions()
    known: set[_Name] = set()
    players = ("policy", "reference", *algorithm.players)
    for round in count():
        asked = 0
        start = versions.of("policy")
        for step in algorithm.steps(_BETA, round):
            for _ in range(step.gradient_steps):
                alive = {versions.of(player) for player in players}  # others are forgotten
                known = {name for name in known if all(version in alive for version, _ in name)}
                names = {versions.name(opponent) for _, opponent in step.payoff}
                if step.by_score:  # remembered, too; by a name that no product has
                    names = {versions.name({who: -w for who, w in step.sampler.items()})}
                asked += 1 if step.pairs else len(names - known)
                known |= set() if step.pairs else names
                versions.moved("policy")
            if step.writes != "policy":
                versions.copy_("policy", step.writes)
                versions.set("policy", start)
        algorithm.end_round(versions, round)
        yield asked
