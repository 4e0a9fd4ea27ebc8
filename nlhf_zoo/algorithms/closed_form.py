r"""Rounds of an algorithm played exactly on a table, many at a time.

A proximal step is log pi_new = log c + s sum_j a_j P o_j + const. Log-policies are rows [C, 1, N],
so a product is a row times the transposed table, of which nothing is copied: one fused ``baddbmm``
makes centre and product together, and writes straight into the trajectory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.algorithms.adaptive import as_adaptive, next_step_size, safe_step_size
from nlhf_zoo.algorithms.base import PolicyOptimizer
from nlhf_zoo.algorithms.products import products_of_a_round
from nlhf_zoo.algorithms.scaling import scaled_steps
from nlhf_zoo.losses import deviations
from nlhf_zoo.records import Mixture, ProximalStep

_SMALL = 50_000  # entries of a table below which threads cost more than they save
# Rounds; the constants that steps leave in the logits must not grow until they cost digits.
_NORMALISE_EVERY = 256


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The policy after each of R rounds in succession."""

    first_round: int  # rounds played when the first row was reached (0 is the start)
    # Preference queries for each prompt so far, int [R]; [R, C] where steps are adaptive, for games
    # accept or reject a round each by itself, and need different numbers.
    queries: Tensor
    log_policy: Tensor  # log-probabilities of all actions, up to a constant [R, C, N]

    @property
    def most_queries(self) -> Tensor:
        """Those of the game that asked most, which budgets and curves are in, int [R]."""
        return self.queries if self.queries.dim() == 1 else self.queries.amax(-1)


_Parts = list[tuple[Tensor, float]]  # log-policies of players [C, 1, N], and their weights
_Key = tuple[tuple[int, float], ...]  # of such parts


class ClosedFormRounds:
    """An algorithm on C games of N actions, step by step in closed form.

    Args:
        algorithm: one that has a closed form.
        beta: temperature of the game.
        table: P(y > y') [C, N, N], antisymmetric about 1/2.
        log_reference: log mu [C, N]; -inf for actions that do not exist.
        logits: every player's log-policy but the reference's, up to a constant [C, N] each.
        products: products that were asked for and are remembered [C, N] each, by the names that
            ``products`` gives them.
        from_start: whether no round has been played, so that equal players are copies of one
            policy.
        step_size: of an adaptive algorithm that goes on, each game's own [C].
        payoff_bound: largest distance of the table's entries from 1/2, in whose double step sizes
            are measured (``nlhf_zoo.algorithms.scaling``); 1/2 of preferences.
        scores: of all actions [C, N], for algorithms whose steps are by score.

    Raises:
        ValueError: the algorithm has no closed form, or takes scores where there are none.
    """

    def __init__(
        self,
        algorithm: PolicyOptimizer,
        beta: float,
        table: Tensor,
        log_reference: Tensor,
        logits: Mapping[str, Tensor],
        products: Mapping[str, Tensor] | None = None,
        from_start: bool = True,
        step_size: Tensor | None = None,
        payoff_bound: float = 0.5,
        scores: Tensor | None = None,
    ) -> None:
        if not algorithm.closed_form:
            raise ValueError(
                f"{type(algorithm).__name__} has no closed form: realise it by gradient steps"
            )
        self.algorithm = algorithm
        self.beta = beta
        self.table = table
        self.payoff_bound = payoff_bound
        absent = log_reference == -torch.inf
        # Logits of absent actions stay finite; a mask takes them out of every softmax.
        self._mask = (
            torch.zeros_like(log_reference).masked_fill(absent, -torch.inf)[:, None]
            if absent.any()
            else None
        )
        self._reference = log_reference.masked_fill(absent, 0.0)[:, None]
        self._transposed = table.mT  # (P o)(y) = sum_y' o(y') P(y > y')
        self._combinations: dict[int, tuple[Mixture, Callable[[], Tensor]]] = {}
        # By player, [C, 1, N]; never written in place, so a copy is a reference.
        self._players: dict[str, Tensor] = {}
        for name, tensor in logits.items():
            row = tensor.detach().masked_fill(absent, 0.0)[:, None].clone()
            # Copies of one policy are one tensor, so that their product is asked for once.
            others = self._players.values() if from_start else ()
            self._players[name] = next((o for o in others if torch.equal(o, row)), row)
        self._remembered = _by_key(
            (self._parts(_mixture_of(name)), product[:, None])
            for name, product in (products or {}).items()
        )
        # Of an adaptive algorithm; those of others are in its plan.
        self.step_size = step_size
        if algorithm.adaptive and step_size is None:
            self.step_size = log_reference.new_full(
                (len(table),), safe_step_size(self._scaled_beta)
            )
        wanted = sum(len(step.payoff) for step in self._steps(0))
        if scores is None and algorithm.by_score:
            raise ValueError(
                f"{type(algorithm).__name__} takes scores of single actions, and this game has none"
            )
        self._scores = None
        if scores is not None:
            self._scores = scores.to(log_reference).masked_fill(absent, 0.0)[:, None]
        self._remembers = products_of_a_round(algorithm) < wanted  # while players stay

    @property
    def _scaled_beta(self) -> float:
        """The temperature where payoffs are brought to the range of preferences."""
        return self.beta / (2 * self.payoff_bound)

    def _steps(self, round: int, *step_size: float) -> Sequence[ProximalStep]:
        return scaled_steps(self.algorithm, self.beta, round, self.payoff_bound, *step_size)

    def copy_(self, source: str, target: str) -> None:
        """As ``PlayerMoves.copy_``; algorithms call it at the end of a round."""
        self._players[target] = self._players[source]

    def lerp_(self, source: str, target: str, weight: float) -> None:
        """As ``PlayerMoves.lerp_``; algorithms call it at the end of a round."""
        here, there = self._players[target], self._players[source]
        self._players[target] = there if weight == 1 else torch.lerp(here, there, weight)

    def run(self, first_round: int, rounds: int) -> Trajectory:
        """The policy after each of some rounds, which follow the ``first_round`` played so far.

        The queries are those of *these* rounds (not of those before).
        """
        algorithm, players = self.algorithm, self._players
        trajectory = self.table.new_empty(rounds, *self._reference.shape)
        queries: list[Any] = []
        asked: Any = 0
        constant = None if algorithm.scheduled else self._steps(first_round)
        with torch.inference_mode(), thread_limit(self.table.numel() < _SMALL):
            for number, row in enumerate(trajectory.unbind(0), first_round):
                if algorithm.adaptive:
                    asked = asked + self._adaptive_round(number, row)
                else:
                    if constant is None:
                        self._combinations.clear()  # a new plan has mixtures of its own
                    asked += self._round(constant or self._steps(number), row)
                    if (number + 1) % _NORMALISE_EVERY == 0:
                        row.sub_(row.logsumexp(-1, keepdim=True))
                algorithm.end_round(self, number)
                queries.append(asked)
        # The players must not be views of a trajectory that is handed out.
        shared = {id(t): t.clone() for t in players.values()}
        self._players = {name: shared[id(t)] for name, t in players.items()}
        shared[id(self._reference)] = self._reference
        self._remembered = _by_key(
            ([(shared[id(t)], weight) for t, weight in parts], product)
            for parts, product in self._remembered.values()
            if all(id(t) in shared for t, _ in parts)
        )
        log_policy = trajectory if self._mask is None else trajectory + self._mask
        counts = torch.stack(queries) if algorithm.adaptive else torch.tensor(queries)
        return Trajectory(first_round + 1, counts, log_policy[:, :, 0])

    def products(self) -> dict[str, Tensor]:
        """The remembered products [C, N] each, by the player that each belongs to, or the mixture.

        Of a mixture the name has weights: "0.5 anchor, 0.5 reference".
        """
        rows = {**self._players, "reference": self._reference}
        return {
            _name_of(dict(zip(names, (weight for _, weight in parts), strict=True))): product[:, 0]
            for parts, product in self._remembered.values()
            for names in itertools.product(
                *([name for name, row in rows.items() if row is t] for t, _ in parts)
            )
        }

    def logits(self) -> dict[str, Tensor]:
        """Every player's log-policy but the reference's, up to a constant [C, N] each."""
        return {name: tensor[:, 0] for name, tensor in self._players.items()}

    def _round(self, steps: Sequence[ProximalStep], row: Tensor) -> int:
        """One round, whose policy is written into ``row``. Returns the queries."""
        players = self._players
        asked = 0
        centre, before = row, None
        for step in steps:
            # Worked out again only where it is another, or a player of it has moved.
            if before is None or step.centre != before.centre or before.writes in step.centre:
                centre = self._combine(step.centre)
            out = row if step.writes == "policy" else None
            if step.normalised:
                apart, scale = self._normalised_payoff(step)
                new = torch.addcmul(centre, apart, scale, value=step.step_size, out=out)
                asked += 1
            elif step.by_score:
                assert self._scores is not None  # else it was refused
                new = torch.add(centre, self._scores, alpha=step.step_size, out=out)
                asked += 1
            elif len(step.payoff) == 1 and not self._remembers:
                ((coefficient, mixture),) = step.payoff
                opponent = centre if mixture == step.centre else self._combine(mixture)
                probability, size = self._probability(opponent), step.step_size * coefficient
                new = torch.baddbmm(centre, probability, self._transposed, alpha=size, out=out)
                asked += 1
            else:
                products = [(a, *self._product(mixture)) for a, mixture in step.payoff]
                new = centre
                for coefficient, product, fresh in products:
                    new = torch.add(new, product, alpha=step.step_size * coefficient, out=out)
                    asked += fresh
            players[step.writes], before = new, step
        return asked

    def _normalised_payoff(self, step: ProximalStep) -> tuple[Tensor, Tensor]:
        """P o less its mean [C, 1, N], and one over its standard deviation, under o that draws."""
        probability = self._probability(self._combine(step.sampler))
        product = torch.bmm(probability, self._transposed)
        return deviations(product, probability, enumerated=True)

    def _product(self, mixture: Mixture) -> tuple[Tensor, bool]:
        """P o [C, 1, N], and whether it had to be asked for."""
        parts = self._parts(mixture)
        key = _key(parts)
        if (known := self._remembered.get(key)) is not None:
            return known[1], False
        product = self._ask(self._combine(mixture))
        if len(self._remembered) > 2 * len(self._players):  # not each time, for it takes a while
            alive = {id(t) for t in (*self._players.values(), self._reference)}
            for old in [old for old in self._remembered if not all(i in alive for i, _ in old)]:
                del self._remembered[old]
        self._remembered[key] = parts, product
        return product, True

    def _parts(self, mixture: Mixture) -> _Parts:
        """The log-policies that a mixture is made of, with their weights."""
        players, reference = self._players, self._reference
        return [
            (reference if player == "reference" else players[player], weight)
            for player, weight in mixture.items()
            if weight
        ]

    def _adaptive_round(self, number: int, row: Tensor) -> Tensor:
        """One round, whose policy is the new one in the games that accept it and else the old one.

        Returns the queries of each game, int [C].
        """
        algorithm, players = as_adaptive(self.algorithm), self._players
        assert self.step_size is not None
        self._combinations.clear()  # a new plan has mixtures of its own
        # The plan of each step size that there is, and which one each game has.
        sizes, of_game = self.step_size.unique(return_inverse=True)
        plans = [self._steps(number, size) for size in sizes.tolist()]

        def each(values: list[float]) -> Tensor:
            return self.table.new_tensor(values)[of_game][:, None, None]

        (first, last) = plans[0]
        size = each([plan[0].step_size for plan in plans])
        centre = sum(
            each([plan[0].centre[player] for plan in plans])
            * (self._reference if player == "reference" else players[player])
            for player in first.centre
        )
        ((_, opponent),) = first.payoff
        old, (product, fresh) = self._combine(opponent), self._product(opponent)
        half = self._normalised(centre + size * product)
        product_of_half = self._ask(half)
        new = self._normalised(centre + size * product_of_half)
        scale = 2 * self.payoff_bound
        accepted = algorithm.accepts(
            self.step_size,
            self._scaled_beta,
            self._masked(self._normalised(old))[:, 0],
            self._masked(half)[:, 0],
            self._masked(new)[:, 0],
            (product[:, 0] / scale, product_of_half[:, 0] / scale),
        )
        taken = accepted[:, None, None]
        row.copy_(torch.where(taken, new, old))
        if accepted.any():
            product = torch.where(taken, self._ask(row), product)
        players[first.writes], players[last.writes] = half, row
        self._remembered = _by_key([([(row, 1.0)], product)])
        self.step_size = next_step_size(self.step_size, self._scaled_beta, accepted)
        return 1 + int(fresh) + accepted.long()

    def _ask(self, log_policy: Tensor) -> Tensor:
        """P o of a player [C, 1, N]."""
        return torch.bmm(self._probability(log_policy), self._transposed)

    def _normalised(self, log_policy: Tensor) -> Tensor:
        return log_policy - self._masked(log_policy).logsumexp(-1, keepdim=True)

    def _masked(self, log_policy: Tensor) -> Tensor:
        return log_policy if self._mask is None else log_policy + self._mask

    def _probability(self, log_policy: Tensor) -> Tensor:
        return torch.softmax(self._masked(log_policy), -1)

    def _combine(self, mixture: Mixture) -> Tensor:
        """sum_i w_i log pi_i [C, 1, N], up to a constant."""
        combine = self._combinations.get(id(mixture))
        if combine is None:
            # The mixture is kept with its combination, so that its id stays its own.
            combine = self._combinations[id(mixture)] = (mixture, self._compile(mixture))
        return combine[1]()

    def _compile(self, mixture: Mixture) -> Callable[[], Tensor]:
        """What a mixture is made of does not change, so it is looked at once."""
        moving = [(p, w) for p, w in mixture.items() if p != "reference" and w]
        share = mixture.get("reference", 0.0)
        fixed = share * self._reference if share else None
        if not moving:
            return lambda: self._reference
        (first, weight), *others = moving
        if not others and fixed is None and weight == 1:
            return lambda: self._players[first]

        def combine() -> Tensor:
            start = self._players[first]
            total = weight * start if fixed is None else torch.add(fixed, start, alpha=weight)
            for player, w in others:
                total = torch.add(total, self._players[player], alpha=w)
            return total

        return combine


def _key(parts: _Parts) -> _Key:
    """Equal for equal mixtures of the same tensors, while these are there."""
    return tuple(sorted([(id(tensor), weight) for tensor, weight in parts]))


def _by_key(products: Iterable[tuple[_Parts, Tensor]]) -> dict[_Key, tuple[_Parts, Tensor]]:
    """Products with what they are of, which keeps the keys' tensors alive."""
    return {_key(parts): (parts, product) for parts, product in products}


def _name_of(mixture: Mixture) -> str:
    """The name of a mixture's product."""
    if [*mixture.values()] == [1]:
        return next(iter(mixture))
    return ", ".join(f"{weight!r} {player}" for player, weight in mixture.items())


def _mixture_of(name: str) -> Mixture:
    """The mixture that a name stands for."""
    if " " not in name:
        return {name: 1.0}
    parts = (part.split(" ") for part in name.split(", "))
    return {player: float(weight) for weight, player in parts}


@contextmanager
def thread_limit(small: bool) -> Iterator[None]:
    """One thread where tables are small: waking another takes longer than an operation on them."""
    before = torch.get_num_threads()
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
