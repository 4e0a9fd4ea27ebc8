"""Games by name, and plays of a method on them in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.adaptive import references
from nlhf_zoo import algorithms
from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.data.tables import games
from nlhf_zoo.solvers import exploitability

CHUNK = 500  # rounds that are played before they are looked at


@dataclass(frozen=True)
class Game:
    """P(y > y') [C, N, N] and log mu [C, N], where every method starts."""

    table: Tensor
    log_mu: Tensor

    def gap(self, log_policy: Tensor, beta: float) -> Tensor:
        """The duality gap, twice the exploitability, of log-policies [..., C, N]."""
        return 2 * exploitability(self.table, log_policy, self.log_mu, beta)


def random_games(number: int, actions: int, seed: int) -> Game:
    """Games as in EGPO's simulation: entries uniform in [0, 1], logits of mu standard normal."""
    table = games.uniform_random(number, actions, seed)
    return Game(table, references(table, seed + 10_000))


def comal_game() -> Game:
    """COMAL's game, from (0.5, 0.3, 0.2)."""
    return Game(games.comal(), torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log())


def cycles(actions: int, strength: float, number: int, seed: int) -> Game:
    """The regular cycle, from references with standard normal logits."""
    table = games.cyclic(actions, strength).repeat(number, 1, 1)
    return Game(table, references(table, seed))


def named(method: str, **arguments: Any) -> PolicyOptimizer:
    """A method of the zoo by the name of its class.

    Of the moving magnet, `inner` is the mapping of a method and its arguments.
    """
    if isinstance(inner := arguments.get("inner"), Mapping):
        arguments = {**arguments, "inner": named(**inner)}
    made = getattr(algorithms, method)(**arguments)
    assert isinstance(made, PolicyOptimizer)
    return made


def begin(algorithm: PolicyOptimizer, game: Game, beta: float) -> ClosedFormRounds:
    """A play, at its start: every player is the reference."""
    players = dict.fromkeys(("policy", *algorithm.players), game.log_mu)
    return ClosedFormRounds(algorithm, beta, game.table, game.log_mu, players)


def chunks(
    algorithm: PolicyOptimizer, game: Game, beta: float, rounds: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rounds of a play in order: queries so far [R], and log-policies [R, C, N]."""
    play, asked = begin(algorithm, game, beta), 0
    for first in range(0, rounds, CHUNK):
        played = play.run(first, min(CHUNK, rounds - first))
        queries = played.most_queries + asked
        asked = int(queries[-1])
        yield queries, played.log_policy.log_softmax(-1)


def trajectory(
    algorithm: PolicyOptimizer, game: Game, beta: float, rounds: int
) -> tuple[Tensor, Tensor]:
    """Queries [R + 1] and log-policies [R + 1, C, N] of a play, the start before all."""
    queries, policies = zip(*chunks(algorithm, game, beta, rounds), strict=True)
    start = game.log_mu.log_softmax(-1)[None]
    return torch.cat([torch.zeros(1, dtype=torch.long), *queries]), torch.cat([start, *policies])


def last(algorithm: PolicyOptimizer, game: Game, beta: float, rounds: int) -> Tensor:
    """The last iterate of a play [C, N]."""
    for _, policies in chunks(algorithm, game, beta, rounds):
        end = policies[-1]
    return end


def queries_to(
    algorithm: PolicyOptimizer, game: Game, beta: float, gap: float, most: int
) -> Tensor:
    """Queries until each game's duality gap is below ``gap`` [C], inf where it never is.

    A round that would exceed ``most`` is not played.
    """
    reached = torch.full((len(game.table),), math.inf, dtype=torch.float64)
    cost = 2 if len(algorithm.steps(beta, 0)) == 2 else 1
    for queries, policies in chunks(algorithm, game, beta, most // cost):
        below = game.gap(policies, beta) < gap
        found = torch.where(below, queries.double()[:, None], math.inf).amin(0)
        reached = torch.minimum(reached, found)
        if reached.isfinite().all():
            break
    return reached
