"""Another payoff than the preference itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.tables.base import TableOracle
from nlhf_zoo.oracles.wrappers.base import WrappedOracle
from nlhf_zoo.records import Comparison, Prompts, Responses
from nlhf_zoo.solvers.payoffs import PREFERENCE_BOUND, PayoffName, bounded_payoff


@final
class Transformed(WrappedOracle):
    r"""The game that pays a function of another oracle's preference, after arXiv 2505.20627.

    .. math:: \tfrac12 + f(P(y \succ y') - \tfrac12), \quad f \text{ odd and increasing}

    What it says is a payoff and no probability: it lies within max |f| = f(1/2) of 1/2, which is a
    tie, and the payoffs of both orders of a pair add up to 1. Exploitability and equilibrium are
    those of this game. Every step size is measured in units of 1 / (2 max |f|), for which the
    theory holds (``nlhf_zoo.algorithms.scaling``).

    f is applied to each probability, before anything is averaged, for f(E[P]) is not E[f(P)]. So it
    must see probabilities, and no labels that are drawn from them: these are refused within, unless
    f is linear. Around it they are drawn of any payoff in [0, 1], sign among them.

    Args:
        oracle: whose preferences.
        payoff: f, by name or as a function of the margin P - 1/2. identity is the margin (maximal
            lotteries C2 at beta = 0), sign half its sign (C1; a margin of at most 1e-6 is a tie),
            log_odds log P / (1 - P). A function must be odd and increasing on [-1/2, 1/2].
        bound: the largest |f|; values beyond it are cut to it. log_odds needs one.

    Raises:
        UserError: f is not odd and increasing, or has no bound; or the oracle's answers are no
            preferences, or drawn.
    """

    def __init__(
        self,
        oracle: PreferenceOracle,
        payoff: PayoffName | Callable[[Tensor], Tensor] = "identity",
        bound: float | None = None,
    ) -> None:
        super().__init__()
        self.payoff = bounded_payoff(payoff, bound)
        self.payoff_name = payoff if isinstance(payoff, str) else _name(payoff)
        self.bound = self.payoff.bound
        if math.isinf(self.bound):
            raise UserError(
                f"the payoff {self.payoff_name} is infinite where a preference is 0 or 1: set "
                "Transformed.bound"
            )
        if oracle.payoff_bound > PREFERENCE_BOUND:
            raise UserError(
                f"{type(oracle).__name__} answers with payoffs already, and Transformed takes "
                "preferences: give it the oracle within"
            )
        drawn = [part for part in oracle.modules() if getattr(part, "draws_answers", False)]
        if drawn and not self.payoff.is_linear:
            raise UserError(
                f"the answers of {type(drawn[0]).__name__} are drawn, and the mean of "
                f"{self.payoff_name} of a label is not {self.payoff_name} of its mean: put "
                "Transformed around probabilities (of a judge, with temperature 0 or verdict "
                "logprobs), and BernoulliLabels around Transformed"
            )
        self.oracle = oracle
        self.asks_in_parallel = oracle.asks_in_parallel
        # P and 1 - P may miss each other by the oracle's tolerance, and f moves that on.
        self.tolerance = self.payoff.change(oracle.tolerance)
        self._table: TableOracle | None = None

    @property
    @override
    def payoff_bound(self) -> float:
        return self.bound

    @property
    @override
    def table(self) -> Tensor | None:
        """The payoffs [C, N, N], where the oracle's preferences are held in memory."""
        return None if (table := self._of_table()) is None else table.table

    @property
    @override
    def answers_table(self) -> bool:
        return self.oracle.answers_table

    @override
    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        """The payoff of each pair; what could not be answered stays invalid."""
        answer: Comparison = self.oracle(prompts, first, second)
        return Comparison(self.payoff(answer.preference), answer.valid)

    @override
    def expected(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> tuple[Tensor, Tensor]:
        listed = first.enumerated and second.enumerated and self.answers_table
        table = self._of_table() if listed else None
        of_pairs = super().expected if table is None else table.expected
        return of_pairs(prompts, first, second)

    @torch.no_grad()
    def _of_table(self) -> TableOracle | None:
        if self._table is None:
            preference, support = self.oracle.table, self.oracle.support
            if preference is not None:
                self._table = TableOracle(self.payoff(preference), support).to(preference.device)
        return self._table


def _name(function: Callable[[Tensor], Tensor]) -> str:
    return getattr(function, "__name__", type(function).__name__)
