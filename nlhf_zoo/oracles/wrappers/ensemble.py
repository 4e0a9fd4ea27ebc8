"""A population of judges."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.wrappers.base import WrappedOracle
from nlhf_zoo.records import Comparison, Prompts, Responses

_CALLS = 20  # of which the agreement is remembered


@dataclass(frozen=True, slots=True)
class Agreement:
    """On how many pairs each two of M judges are on the same side.

    Pairs are of different responses to one prompt, and counted where both judges have an answer
    that is not a tie: P(a > b) is above 1/2 for both, or below for both.
    """

    share: Tensor  # of the pairs that are counted, [M, M]; NaN where none are
    compared: Tensor  # how many are counted, long [M, M]

    @property
    def mean(self) -> float:
        """The mean share of each two different judges; NaN where none can be compared."""
        different = torch.ones_like(self.share, dtype=torch.bool).triu(1)
        return float(self.share[different].nanmean())


@final
class EnsembleOracle(WrappedOracle):
    r"""The weighted mean of oracles: a population of judges, of whom one is asked at random.

    .. math:: P(y > y') = \sum_i w_i P_i(y > y')

    It can be intransitive where each member is transitive: three judges who rank (a, b, c),
    (b, c, a) and (c, a, b) prefer a to b, b to c, and c to a. Members are over one table, or all
    over texts. Each is asked about every pair.

    An answer is valid where *every* member has one: without a member it would be the answer of
    another population.

    Args:
        oracles: its members, two at least.
        weights: how large a part of the population each member stands for, relative to the others;
            None for equal parts.

    Raises:
        UserError: the members are too few or do not belong together, or a weight is not above 0.
    """

    _table: Tensor | None

    def __init__(self, oracles: list[PreferenceOracle], weights: list[float] | None = None) -> None:
        super().__init__()
        if len(oracles) < 2:
            raise UserError(f"an ensemble needs two oracles at least, but it has {len(oracles)}")
        self.weights = _shares(len(oracles), weights)
        self.reweighed = 0  # how often the weights have moved: each time it is another game
        for number, other in enumerate(oracles[1:], 2):
            _refuse_other_game(oracles[0], other, number)
        self.oracles = nn.ModuleList(oracles)
        # The rounding of means of P and of 1 - P to the precision of the responses' weights.
        self.tolerance = max(1e-6, *(oracle.tolerance for oracle in oracles))
        self.asks_in_parallel = all(oracle.asks_in_parallel for oracle in oracles)
        self.register_buffer("_table", None, persistent=False)
        self._recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=_CALLS)
        self._of_table: Agreement | None = None

    @property
    def members(self) -> list[PreferenceOracle]:
        """The oracles of the population."""
        return cast(list[PreferenceOracle], [*self.oracles])

    def reweigh(self, weights: Sequence[float]) -> None:
        """Take other weights, one for each member, relative to each other; one may round to 0.

        Who remembers answers, or products of them, must forget them.
        """
        total = math.fsum(weights)
        self.weights = [weight / total for weight in weights]
        self._table = None
        self.reweighed += 1

    @property
    @override
    def inner(self) -> PreferenceOracle:
        """The first member: prompts and responses of all members are the same."""
        return self.members[0]

    @property
    @override
    def asks_ahead(self) -> bool:
        return any(member.asks_ahead for member in self.members)

    @override
    def ask_ahead(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> Callable[[], bool]:
        asked = [
            member.ask_ahead(prompts, first, second) for member in self.members if member.asks_ahead
        ]
        return lambda: all(is_answered() for is_answered in asked)

    @property
    @override
    def payoff_bound(self) -> float:
        return weighted_bound(self.members, self.weights)

    @property
    @override
    def table(self) -> Tensor | None:
        """The weighted mean of the members' tables [C, N, N]; None where one has none."""
        if self._table is None:
            tables = self._tables()
            self._table = None if tables is None else weighted_mean(tables, self.weights)
        return self._table

    @property
    @override
    def answers_table(self) -> bool:
        return all(member.answers_table for member in self.members)

    @override
    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        """Ask every member about every pair."""
        comparisons: list[Comparison] = [member(prompts, first, second) for member in self.members]
        preferences = [comparison.preference for comparison in comparisons]
        valid = torch.stack([comparison.valid for comparison in comparisons])
        # In self-play the other half says the same again, and a response is not its own opponent.
        counted = valid.triu(1) if first is second else valid
        self._recent.append(same_side(preferences, counted))
        return Comparison(weighted_mean(preferences, self.weights), valid.all(0))

    @override
    def expected(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> tuple[Tensor, Tensor]:
        """The weighted mean of the members' products [B, K], where they are over a table.

        Over texts it is made of pairs: an answer counts where every member has one.
        """
        if self.support is None:
            return super().expected(prompts, first, second)
        products = [member.expected(prompts, first, second) for member in self.members]
        valid = torch.stack([answered for _, answered in products]).all(0)
        return weighted_mean([product for product, _ in products], self.weights), valid

    def agreement(self) -> Agreement:
        """How far the members agree.

        Over a table, on all pairs of all prompts; over texts, on the pairs of the last 20 calls.
        """
        if self._of_table is not None:
            return self._of_table
        tables, support = self._tables(), self.support
        if tables is not None and support is not None:
            pairs = (support[:, :, None] & support[:, None, :]).triu(1)
            counts = same_side(tables, pairs.expand(len(tables), *pairs.shape))
            self._of_table = _agreement([counts])
            return self._of_table
        num = len(self.oracles)
        nothing = torch.zeros(num, num, dtype=torch.long)
        return _agreement([(nothing, nothing), *self._recent])

    def _tables(self) -> list[Tensor] | None:
        tables = [member.table for member in self.members]
        found = [table for table in tables if table is not None]
        return found if len(found) == len(tables) else None


def weighted_mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i v_i of M tensors of one shape, in the highest of their precisions."""
    dtype = reduce(torch.promote_types, [value.dtype for value in values])
    total = torch.zeros_like(values[0], dtype=dtype)
    for value, weight in zip(values, weights, strict=True):
        total.add_(value.to(dtype), alpha=weight)
    return total


def weighted_bound(members: Sequence[PreferenceOracle], weights: Sequence[float]) -> float:
    """The largest distance from 1/2 of a weighted mean of the members' answers."""
    return math.fsum(w * member.payoff_bound for member, w in zip(members, weights, strict=True))


def same_side(preferences: Sequence[Tensor], counted: Tensor) -> tuple[Tensor, Tensor]:
    """On how many pairs each two judges are on the same side of 1/2, and of how many, [M, M] both.

    Ties are on no side. ``preferences`` are P(a > b) of M judges, all of one shape, and ``counted``
    says which of these answers count, bool [M, ...].
    """
    sides = [
        (preference - 0.5).sign().to(torch.int8) * counts
        for preference, counts in zip(preferences, counted, strict=True)
    ]
    num = len(sides)
    agreeing, compared = (torch.zeros(num, num, dtype=torch.long) for _ in range(2))
    for one in range(num):
        for other in range(one, num):
            product = sides[one] * sides[other]
            agreeing[one, other] = agreeing[other, one] = (product > 0).sum()
            compared[one, other] = compared[other, one] = (product != 0).sum()
    return agreeing, compared


def _agreement(counts: Sequence[tuple[Tensor, Tensor]]) -> Agreement:
    agreeing, compared = (torch.stack(kind).sum(0) for kind in zip(*counts, strict=True))
    return Agreement(agreeing.double() / compared, compared)


def _shares(num: int, weights: Sequence[float] | None) -> list[float]:
    weights = [1.0] * num if weights is None else weights
    if len(weights) != num:
        raise UserError(f"an ensemble of {num} oracles has {len(weights)} weights: give each one")
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(
                f"the weights of an ensemble must be finite numbers above 0, but one is {weight}"
            )
    return [weight / math.fsum(weights) for weight in weights]


def _refuse_other_game(one: PreferenceOracle, other: PreferenceOracle, number: int) -> None:
    """Refuse a member that does not judge the first one's responses."""
    same = {
        "actions": _equal(one.support, other.support),
        "prompts": _same_prompts(one.prompts, other.prompts),
        "names of actions": one.action_names == other.action_names,
    }
    for what, is_same in same.items():
        if not is_same:
            raise UserError(
                f"the members of an ensemble judge the same responses, but number {number}, "
                f"{type(other).__name__}, has other {what} than the first, {type(one).__name__}"
            )


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _same_prompts(one: Prompts | None, other: Prompts | None) -> bool:
    if one is None or other is None:
        return one is other
    pairs = ((one.text, other.text), (one.conversations, other.conversations))
    same = [[*(first or ())] == [*(second or ())] for first, second in pairs]
    return _equal(one.ids, other.ids) and all(same)
