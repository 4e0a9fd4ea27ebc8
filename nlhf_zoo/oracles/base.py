"""The interface of everything that can say which of two responses is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nlhf_zoo.records import Comparison, Prompts, Responses

# What a subclass may have overridden in version 0.1, and its name now.
_RENAMED = {
    "names": "action_names",
    "reads_cut": "reads_truncated",
    "as_shown": "in_given_order",
    "last_words": "last_error",
}


class PreferenceOracle(nn.Module, ABC):
    """P(y > y' | x): a probability in [0, 1] and a validity mask.

    P(y > y') + P(y' > y) = 1 and P(y > y) = 1/2 within ``tolerance``. Nothing more is assumed; in
    particular the preference may be intransitive.
    """

    tolerance: float = 0.0  # largest |P(a > b) + P(b > a) - 1| that this oracle admits
    # Whether several threads may ask at once, and gain by it: it waits for another machine.
    asks_in_parallel: bool = False
    # Whether an answer is drawn, a label or a vote with the preference as its mean.
    draws_answers: bool = False
    # Arguments on which no answer depends: how it is reached, or how much it may cost.
    may_change_on_resume: ClassVar[frozenset[str]] = frozenset()
    # Arguments that stand for another one, by their names in an earlier version.
    former_names: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a class that overrides what is called otherwise now, and would be passed over."""
        super().__init_subclass__(**options)
        for old in _RENAMED.keys() & vars(cls).keys():
            raise TypeError(f"{cls.__name__}.{old} is called {_RENAMED[old]} since version 0.2")

    @abstractmethod
    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        """Compare each first response with each second one.

        Args:
            prompts: B prompts.
            first: K responses a prompt.
            second: L responses a prompt.

        Returns:
            preference and validity [B, K, L].
        """

    def expected(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> tuple[Tensor, Tensor]:
        """The product (P o)(y_k) = sum_l w_l P(y_k > y'_l), with the second responses' weights.

        Weights are renormalised over the valid answers; a response without any valid answer is
        invalid.

        Args:
            prompts: B prompts.
            first: K responses a prompt.
            second: L responses a prompt, with weights.

        Returns:
            the product [B, K] and its validity, bool [B, K].
        """
        comparison: Comparison = self(prompts, first, second)
        return comparison.average(second.weight)

    @property
    def asks_ahead(self) -> bool:
        """Whether ``ask_ahead`` puts questions that are answered while something else is done."""
        return False

    def ask_ahead(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> Callable[[], bool]:
        """Put the questions of a comparison that will be made later, and wait for no answer.

        The comparison is made by calling the oracle, as ever, and asks none of them again.

        Args:
            prompts: B prompts.
            first: K responses a prompt.
            second: L responses a prompt.

        Returns:
            whether the comparison would wait for nobody now; it may be called again and again.
        """
        raise NotImplementedError(f"{type(self).__name__} answers at once, or not at all")

    @property
    def payoff_bound(self) -> float:
        """The largest distance of an answer from 1/2.

        1/2 of a preference; `Transformed` answers with payoffs of another range.
        """
        return 0.5

    @property
    def has_scores(self) -> bool:
        """Whether it is a Bradley-Terry preference that says by what scores."""
        return False

    def score(self, prompts: Prompts, responses: Responses) -> tuple[Tensor, Tensor]:
        r"""Scores r(x, y) of single responses, of any size, where it ``has_scores``.

        .. math:: P(y > y' | x) = \sigma(r(x, y) - r(x, y'))

        Args:
            prompts: B prompts.
            responses: K responses a prompt.

        Returns:
            r [B, K] and its validity, bool [B, K].
        """
        raise NotImplementedError(f"{type(self).__name__} has no scores of single responses")

    @property
    def score_table(self) -> Tensor | None:
        """The scores of all actions [C, N], where they are held in memory; None otherwise."""
        return None

    @property
    def support(self) -> Tensor | None:
        """Which actions exist for each prompt, bool [C, N]; None where this is not a table."""
        return None

    @property
    def prompts(self) -> Prompts | None:
        """All prompts, where these belong to the oracle (a table's); None otherwise."""
        support = self.support
        if support is None:
            return None
        return Prompts(torch.arange(len(support), device=support.device))

    @property
    def action_names(self) -> list[list[str]] | None:
        """Names of the actions of each prompt of a table, C lists; None where they have none."""
        return None

    @property
    def table(self) -> Tensor | None:
        """The whole preference P(y > y') [C, N, N], where it is held in memory; None otherwise."""
        return None

    @property
    def answers_table(self) -> bool:
        """Whether its answers are the entries of ``table``: a closed form may read these."""
        return self.table is not None
