"""Where the game stands, and which weights its players have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Where the game stands; all of it survives a resume."""

    round: int = 0  # rounds that are finished
    step: int = 0  # proximal steps that are finished in this round
    gradient_step: int = 0  # gradient steps that are finished in this proximal step
    batches: int = 0  # training steps that this process has played
    queries: int = 0  # preference queries of all processes
    queries_per_prompt: int = 0  # of each prompt of a batch, as algorithms are compared by
    invalid: int = 0  # answers of the oracle that could not be had
    unjudged: int = 0  # prompts that left the loss because none of their answers was valid
    tokens: int = 0  # that all processes have drawn, of scored responses and of opponents


class Versions(dict[str, int]):
    """A number for each player's weights: equal numbers mean equal weights.

    It changes when the weights move, and is copied when they are. By it samples say which weights
    drew them, and a product is remembered for as long as its players do not move.
    """

    def of(self, player: str) -> int:
        """A player's number: -1 for the reference, which never moves, 0 for one that has not."""
        return -1 if player == "reference" else self.get(player, 0)

    def moved(self, player: str) -> None:
        """A player has got weights that none had before."""
        self[player] = max([0, *self.values()]) + 1

    def copied(self, source: str, target: str) -> None:
        """A player has got another's weights."""
        self[target] = self.of(source)

    def returned(self, player: str, number: int) -> None:
        """A player has got back the weights that had this number."""
        self[player] = number
