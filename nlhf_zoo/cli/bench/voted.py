"""The small language by votes on each pair: they train, and the truth measures."""

from __future__ import annotations

from typing import final

from torch import Tensor
from typing_extensions import override

from nlhf_zoo.cli.bench.games import VOTES
from nlhf_zoo.data.tables import games, small_language
from nlhf_zoo.oracles import SmallLanguage

_SEED = 0


@final
class VotedSmallLanguage(SmallLanguage):
    """Answers with shares of `VOTES` votes on each pair; its table, for metrics, is the truth.

    Args:
        num_letters: letters of the language.
    """

    truth: Tensor

    def __init__(self, num_letters: int = len(small_language.LETTERS)) -> None:
        super().__init__(num_letters=num_letters)
        truth = self.preference
        self.register_buffer("truth", truth, persistent=False)
        self.preference = games.of_votes(truth, VOTES, _SEED)

    @property
    @override
    def answers_table(self) -> bool:
        return False  # of votes it answers

    @property
    @override
    def table(self) -> Tensor:
        return self.truth
