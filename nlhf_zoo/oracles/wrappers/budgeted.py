"""A limit to what an oracle may cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.ledger import Ledger, ledgers
from nlhf_zoo.oracles.wrappers.base import WrappedOracle
from nlhf_zoo.records import Comparison, Prompts, Responses

# What is counted before something is asked; other counts tell what an answer has cost.
_ASKING = ("queries", "swapped", "requests")
_LIMITS = ("max_queries", "max_requests", "max_tokens", "max_seconds")


@final
class BudgetedOracle(WrappedOracle):
    """Another oracle that stops before it costs more than it may.

    A question that would exceed the budget is refused before it is asked: the run ends with a
    checkpoint, and goes on from it with a larger budget. All of the oracle's parts count, the
    members of an ensemble as well; answers from a cache cost nothing. The counts are in the
    checkpoint, and beside it what was asked since: a run that was killed exceeds no budget, either,
    when it goes on. Of several processes each knows what the others have asked before its last
    training step: together they may ask a little more.

    Give one limit at least. Tokens and seconds are known when they are spent: what comes next is
    refused, but requests under way end.

    An oracle that keeps no counts, such as a table, is counted here as the game counts it: distinct
    pairs, and one query a prompt where responses are listed. No closed form may read such a table,
    which would ask nothing.

    Args:
        oracle: who is asked.
        max_queries: distinct pairs that may be asked about; asking about one again in the other
            order is no query.
        max_requests: requests to a server, those that are tried again among them.
        max_tokens: tokens that a judge may read and write.
        max_seconds: seconds that may be spent in asking.

    Raises:
        UserError: there is no limit, or one that allows nothing.
    """

    may_change_on_resume = frozenset(_LIMITS)

    def __init__(
        self,
        oracle: PreferenceOracle,
        max_queries: int | None = None,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        max_seconds: float | None = None,
    ) -> None:
        super().__init__()
        given = (max_queries, max_requests, max_tokens, max_seconds)
        limits = zip(_LIMITS, given, strict=True)
        self.limits = {name: limit for name, limit in limits if limit is not None}
        _refuse_limits(self.limits)
        self.oracle = oracle
        self.tolerance = oracle.tolerance
        self.asks_in_parallel = oracle.asks_in_parallel
        self.ledger = Ledger()
        counted = list(ledgers(oracle).values())
        self.counts_itself = not counted
        self._ledgers = [self.ledger, *counted]
        self._began: tuple[float, float] | None = None  # seconds spent, and the clock, at a call
        for ledger in self._ledgers:
            # A bound method: a copy of this oracle binds it to the copy.
            ledger.gates.append(self._refuse_excess)

    @property
    @override
    def table(self) -> Tensor | None:
        with self._timed():
            return self.oracle.table

    @property
    @override
    def answers_table(self) -> bool:
        """Not where reading the table would pass the budget by."""
        return not self.counts_itself and self.oracle.answers_table

    @override
    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        """Ask the other oracle, or raise an OracleStoppedError where the budget is spent."""
        self._count(prompts, first, second)
        with self._timed():
            comparison: Comparison = self.oracle(prompts, first, second)
        if self.counts_itself:
            invalid = int((~comparison.valid).sum())
            self.ledger.charge(invalid=invalid // 2 if first is second else invalid)
        return comparison

    @override
    def expected(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> tuple[Tensor, Tensor]:
        self._count(prompts, first, second)
        with self._timed():
            return self.oracle.expected(prompts, first, second)

    @property
    @override
    def has_scores(self) -> bool:
        return self.oracle.has_scores

    @property
    @override
    def score_table(self) -> Tensor | None:
        return self.oracle.score_table

    @override
    def score(self, prompts: Prompts, responses: Responses) -> tuple[Tensor, Tensor]:
        """The other oracle's; of one that keeps no counts each is a query, or all listed ones."""
        if self.counts_itself:
            each = 1 if responses.enumerated else responses.num
            self.ledger.charge(queries=len(prompts) * each)
        with self._timed():
            return self.oracle.score(prompts, responses)

    def spent(self) -> dict[str, float]:
        """What was spent so far, by the names of the limits."""

        def total(field: str) -> int:
            return sum(ledger[field] for ledger in self._ledgers)

        seconds = total("microseconds") / 1e6
        if self._began is not None:  # what is being asked is in no ledger yet
            before, clock = self._began
            seconds = max(seconds, before + time.perf_counter() - clock)
        tokens = total("prompt_tokens") + total("reply_tokens")
        sums = (total("queries"), total("requests"), tokens, seconds)
        return dict(zip(_LIMITS, sums, strict=True))

    def _count(self, prompts: Prompts, first: Responses, second: Responses) -> None:
        if self.counts_itself:
            self.ledger.charge(queries=len(prompts) * queries_per_prompt(first, second))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        if self._began is not None:  # within another call
            yield
            return
        began = time.perf_counter()
        self._began = (self.spent()["max_seconds"], began)
        try:
            yield
        finally:
            self._began = None
            if self.counts_itself:
                self.ledger.charge(microseconds=int(1e6 * (time.perf_counter() - began)))

    def _refuse_excess(self, counts: Mapping[str, int]) -> None:
        """The gate of every ledger within."""
        if not any(counts.get(field) for field in _ASKING):
            return
        spent = self.spent()
        for name, limit in self.limits.items():
            more = counts.get(name.removeprefix("max_"), 0)
            # The swapped call, or the request, of a query that was allowed is allowed; every query
            # needs what else there is.
            if spent[name] + more > limit or (name != "max_queries" and spent[name] >= limit):
                raise OracleStoppedError(
                    f"the oracle's budget is spent: it was asked {spent['max_queries']:.0f} "
                    f"queries in {spent['max_requests']:.0f} requests, for "
                    f"{spent['max_tokens']:.0f} tokens and {spent['max_seconds']:.1f} seconds, and "
                    f"another would exceed {name} {limit}: raise BudgetedOracle.{name}"
                )


def queries_per_prompt(first: Responses, second: Responses) -> int:
    """Distinct pairs of one prompt; all of them together are one query where they are listed.

    In self-play both are the very same object.
    """
    if first.enumerated:
        return 1
    return first.num * (first.num - 1) // 2 if first is second else first.num * second.num


def _refuse_limits(limits: Mapping[str, float]) -> None:
    if not limits:
        raise UserError(
            "BudgetedOracle has no limit: set max_queries, max_requests, max_tokens or max_seconds"
        )
    for name, limit in limits.items():
        if not (math.isfinite(limit) and limit > 0):
            raise UserError(
                f"BudgetedOracle.{name} must be a finite number above 0, but it is {limit}"
            )
