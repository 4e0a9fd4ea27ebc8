r"""Rounds of many algorithms at once, played exactly on the same tables.

A plan is a list of proximal steps, log pi_new = log c + s sum_j a_j P o_j + const, so steps of one
index can be taken together, whichever algorithms they belong to. A *row* is an algorithm at a beta.
The players of all rows lie in one tensor, a *slot* each; centres and opponents of a step are
weighted sums of slots, and because the product is linear,

.. math:: \log c + P \Big( s \sum_j a_j o_j \Big)

is one product of [rows, N] with each transposed table: a table is read once for all rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlhf_zoo.algorithms.base import PolicyOptimizer
from nlhf_zoo.algorithms.closed_form import thread_limit
from nlhf_zoo.records import ProximalStep

_SMALL = 50_000  # entries of all tables below which threads cost more than they save
_NORMALISE_EVERY = 256  # rounds, as in the closed form of one algorithm
_SUM = 0  # the mode of `torch.embedding_bag`
_Move = tuple[str, str, float]  # source, target, weight


@dataclass(frozen=True, slots=True)
class Row:
    """An algorithm at a temperature.

    Args:
        algorithm: one that `can_be_batched`.
        beta: of the game.
    """

    algorithm: PolicyOptimizer
    beta: float


def can_be_batched(algorithm: PolicyOptimizer) -> bool:
    """Whether its plan is linear in P o, and the same for all games: then it has a place here."""
    if not algorithm.closed_form or algorithm.adaptive or algorithm.by_score:
        return False
    return not any(step.normalised for step in algorithm.steps(1e-9, 0))


@dataclass(frozen=True, slots=True)
class _Index:
    """The steps of one index as numbers, of R of the rows, with E >= R terms of payoffs.

    Args:
        slots: of each part of a mixture, the centres first, then the terms [parts].
        starts: where each mixture begins in them [R + E].
        weights: of the parts [parts].
        scales: s a_j of each term [E, 1, 1].
        further: of the terms beyond each row's first, to which of the R they are added; None where
            there are none.
        writes: the slot that each of the R writes.
        places: of each row the place of its centre, and those of its terms among the E.
    """

    slots: Tensor
    starts: Tensor
    weights: Tensor
    scales: Tensor
    further: Tensor | None
    writes: Tensor
    places: dict[int, tuple[int, list[int]]]

    def put(self, row: int, step: ProximalStep) -> None:
        """Take the numbers of a step, whose players are those that the row had."""
        weights, scales, starts = (t.numpy() for t in (self.weights, self.scales, self.starts))
        centre, terms = self.places[row]
        placed = [(centre, step.centre)]
        for place, (coefficient, mixture) in zip(terms, step.payoff, strict=True):
            placed.append((len(self.places) + place, mixture))
            scales[place, 0, 0] = step.step_size * coefficient
        for place, mixture in placed:
            weights[starts[place] : starts[place] + len(mixture)] = [*mixture.values()]


@dataclass(slots=True)
class _Moves:
    """What ``end_round`` does to the players of a row, noted down."""

    done: list[_Move]

    def copy_(self, source: str, target: str) -> None:
        self.done.append((source, target, 1.0))

    def lerp_(self, source: str, target: str, weight: float) -> None:
        self.done.append((source, target, weight))


class BatchedRounds:
    """Algorithms on C games of N actions, all in one batch, from the reference.

    Args:
        rows: what is played; an algorithm may stand at several betas.
        table: P(y > y') [C, N, N], antisymmetric about 1/2.
        log_reference: log mu [C, N], finite.

    Raises:
        ValueError: an algorithm cannot be batched, or an action does not exist.
    """

    def __init__(self, rows: Sequence[Row], table: Tensor, log_reference: Tensor) -> None:
        for row in rows:
            if not can_be_batched(row.algorithm):
                raise ValueError(f"{type(row.algorithm).__name__} cannot be played in a batch")
        if not log_reference.isfinite().all():
            raise ValueError("in a batch every action of every game exists")
        self.rows, self.table = list(rows), table
        self._shape = log_reference.shape
        # By row, the slot of each player; slot 0 is the reference, of all.
        self._slot: list[dict[str, int]] = []
        for row in rows:
            first = 1 + sum(len(own) - 1 for own in self._slot)
            names = ("policy", *row.algorithm.players)
            self._slot.append({"reference": 0} | {n: first + i for i, n in enumerate(names)})
        slots = 1 + sum(len(own) - 1 for own in self._slot)
        self._players = log_reference.reshape(1, -1).repeat(slots, 1)  # [slots, C N]
        self._round = 0
        self._plan: list[_Index] | None = None
        self._steps: dict[int, list[ProximalStep]] = {}
        self._moves: dict[object, list[tuple[float, Tensor, Tensor]]] = {}
        self._movers = self._who_moves()

    def log_policy(self) -> Tensor:
        """The policy of each row, up to a constant [rows, C, N]."""
        slots = torch.tensor([own["policy"] for own in self._slot])
        return self._players[slots].view(-1, *self._shape)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows alone."""
        self.rows = [self.rows[number] for number in rows]
        self._slot = [self._slot[number] for number in rows]
        self._plan, self._steps, self._moves = None, {}, {}
        self._movers = self._who_moves()

    def _who_moves(self) -> list[PolicyOptimizer]:
        """The algorithms that move players between rounds, each once whatever rows it has."""
        nothing = PolicyOptimizer.end_round
        each = {id(row.algorithm): row.algorithm for row in self.rows}
        return [a for a in each.values() if type(a).end_round is not nothing]

    def play(self, rounds: int) -> None:
        """Play so many rounds of every row."""
        self._scheduled = [row.algorithm.scheduled for row in self.rows]
        scheduled = any(self._scheduled)
        with torch.inference_mode(), thread_limit(self.table.numel() < _SMALL):
            for number in range(self._round, self._round + rounds):
                if self._plan is None or scheduled:
                    self._plan_round(number)
                for index in self._plan or ():
                    self._step(index)
                self._end_round(number)
                if (number + 1) % _NORMALISE_EVERY == 0:
                    games = self._players.view(-1, *self._shape)
                    games.sub_(games.logsumexp(-1, keepdim=True))
        self._round += rounds

    def _step(self, index: _Index) -> None:
        number, players = len(index.places), self._players
        # A gather, a product with weights and a sum, in one operation.
        mixed, *_ = torch.embedding_bag(
            players, index.slots, index.starts, False, _SUM, False, index.weights
        )
        games = mixed.view(-1, *self._shape)
        centre, opponents = games[:number], games[number:]
        # A softmax, times the scales; in its parts it takes a third of the time on small games.
        measure = opponents.sub_(opponents.amax(-1, keepdim=True)).exp_()
        measure.mul_(index.scales / measure.sum(-1, keepdim=True))
        if index.further is not None:
            measure[:number].index_add_(0, index.further, measure[number:])
        # [C, R, N] times [C, N, N]: each table is read once for all rows.
        rows = measure[:number].transpose(0, 1)
        new = torch.baddbmm(centre.transpose(0, 1), rows, self.table.mT)
        players.view(-1, *self._shape).index_copy_(0, index.writes, new.transpose(0, 1))

    def _end_round(self, number: int) -> None:
        noted = []
        for algorithm in self._movers:
            algorithm.end_round(moves := _Moves([]), number)
            noted.append(tuple(moves.done))
        key = tuple(noted)
        if key not in self._moves:
            by_algorithm = dict(zip(map(id, self._movers), noted, strict=True))
            self._moves[key] = self._grouped(
                [by_algorithm.get(id(row.algorithm), ()) for row in self.rows]
            )
        players = self._players
        for weight, sources, targets in self._moves[key]:
            there = players.index_select(0, sources)
            if weight != 1:
                there = torch.lerp(players.index_select(0, targets), there, weight)
            players.index_copy_(0, targets, there)

    def _grouped(self, noted: Sequence[Sequence[_Move]]) -> list[tuple[float, Tensor, Tensor]]:
        """Moves of one weight, of several rows, as one; each row's in their order."""
        grouped = []
        for place in range(max(map(len, noted), default=0)):
            alike: dict[float, list[tuple[int, int]]] = {}
            for own, moves in zip(self._slot, noted, strict=True):
                for source, target, weight in moves[place : place + 1]:
                    alike.setdefault(weight, []).append((own[source], own[target]))
            for weight, pairs in alike.items():
                sources, targets = torch.tensor(pairs).T.contiguous()
                grouped.append((weight, sources, targets))
        return grouped

    def _plan_round(self, number: int) -> None:
        """Take the plans of a round, of which those that are not scheduled are the same again."""
        for row, own in enumerate(self.rows):
            if self._plan is not None and not self._scheduled[row]:
                continue
            steps = list(own.algorithm.steps(own.beta, number))
            if self._plan is None or list(map(_form, steps)) != list(map(_form, self._steps[row])):
                self._plan = None
            else:
                for index, step in zip(self._plan, steps, strict=False):
                    index.put(row, step)
            self._steps[row] = steps
        if self._plan is None:
            self._plan = [self._index(i) for i in range(max(map(len, self._steps.values())))]

    def _index(self, number: int) -> _Index:
        """The steps of one index, of the rows that have so many."""
        steps = {row: plan[number] for row, plan in self._steps.items() if number < len(plan)}
        rows = [*steps]
        # By row the centre; then its first term; then all others.
        others = [(row, j) for row in rows for j in range(1, len(steps[row].payoff))]
        terms = [*((row, 0) for row in rows), *others]
        mixtures = [(row, steps[row].centre) for row in rows]
        mixtures += [(row, steps[row].payoff[j][1]) for row, j in terms]
        slots = [self._slot[row][name] for row, mixture in mixtures for name in mixture]
        starts = [0, *itertools.accumulate(len(mixture) for _, mixture in mixtures)]
        index = _Index(
            torch.tensor(slots),
            torch.tensor(starts[:-1]),
            self.table.new_zeros(len(slots)),
            self.table.new_zeros(len(terms), 1, 1),
            torch.tensor([rows.index(row) for row, _ in others]) if others else None,
            torch.tensor([self._slot[row][steps[row].writes] for row in rows]),
            {
                row: (place, [p for p, (owner, _) in enumerate(terms) if owner == row])
                for place, row in enumerate(rows)
            },
        )
        for row, step in steps.items():
            index.put(row, step)
        return index


def _form(step: ProximalStep) -> tuple[object, ...]:
    """What of a step is no number: the players of its mixtures, and the one that it writes."""
    return (*step.centre, None, *(tuple(mixture) for _, mixture in step.payoff), step.writes)
