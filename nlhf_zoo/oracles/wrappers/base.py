"""What oracles around another one hand on of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from typing_extensions import override

from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.records import Prompts, Responses


class WrappedOracle(PreferenceOracle):
    """An oracle over the same prompts and responses as another one, ``inner``."""

    oracle: PreferenceOracle

    @property
    def inner(self) -> PreferenceOracle:
        """Whose prompts and responses these are."""
        return self.oracle

    @property
    @override
    def asks_ahead(self) -> bool:
        return self.inner.asks_ahead

    @override
    def ask_ahead(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> Callable[[], bool]:
        return self.inner.ask_ahead(prompts, first, second)

    @property
    @override
    def payoff_bound(self) -> float:
        return self.inner.payoff_bound

    @property
    @override
    def support(self) -> Tensor | None:
        return self.inner.support

    @property
    @override
    def prompts(self) -> Prompts | None:
        return self.inner.prompts

    @property
    @override
    def action_names(self) -> list[list[str]] | None:
        return self.inner.action_names

    @property
    @override
    def table(self) -> Tensor | None:
        """The other oracle's: exact metrics judge the game itself, and ask nothing."""
        return self.inner.table


class WrappedTextOracle(TextOracle):
    """An oracle of texts that puts questions to another one."""

    def __init__(self, oracle: TextOracle) -> None:
        super().__init__()
        self.oracle = oracle
        self.symmetric = oracle.symmetric
        self.reads_truncated = oracle.reads_truncated
        self.tolerance = oracle.tolerance
        self.asks_in_parallel = oracle.asks_in_parallel

    @override
    def in_given_order(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """The other oracle's: nothing is swapped or remembered."""
        return self.oracle.in_given_order(questions)
