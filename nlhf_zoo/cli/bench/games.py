"""The games of the exact part: twenty tables, which with the seed are the same for everyone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nlhf_zoo.data.tables import games

BETAS = (0.1, 0.01)
_FEW = 5  # games of the small setting
VOTES = 11  # on each pair: they train what is held out; odd, so that few tables are met by chance
_CROWD = {"num_annotators": 101, "cycle": 5}


@dataclass(frozen=True, slots=True)
class ExactGame:
    """A kind of game of one size; what is random of it, and its reference, are of the seed.

    Args:
        name: by which results tell it.
        make: the table P(y > y') [1, N, N] of a seed.
    """

    name: str
    make: Callable[[int], Tensor]


def _fixed(table: Tensor) -> Callable[[int], Tensor]:
    """A game with nothing random in it."""
    return lambda seed: table


def _of_size(num: int) -> list[ExactGame]:
    """The kinds of games that there are in every larger size."""
    return [
        ExactGame(f"uniform random, {num}", partial(games.uniform_random, 1, num)),
        ExactGame(f"Bradley-Terry, {num}", partial(games.bradley_terry, 1, num)),
        ExactGame(f"annotators, {num}", lambda seed: games.annotators(num, seed=seed, **_CROWD)),  # type: ignore[arg-type]
    ]


GAMES = (
    ExactGame("COMAL", _fixed(games.comal())),
    ExactGame("rock, paper, scissors", _fixed(games.cyclic(3, 0.9))),
    ExactGame("weak rock, paper, scissors", _fixed(games.cyclic(3, 0.6))),
    ExactGame("Bradley-Terry, 3", partial(games.bradley_terry, 1, 3)),
    *_of_size(10),
    ExactGame("steep Bradley-Terry, 10", partial(games.bradley_terry, 1, 10, scale=4.0)),
    ExactGame("annotators without a cycle, 10", lambda seed: games.annotators(10, 101, None, seed)),
    ExactGame("cyclic blocks, 10", _fixed(games.cyclic_blocks(10))),
    ExactGame("sine, 10", partial(games.sine_game, 10)),
    ExactGame("sure cyclic blocks, 10", _fixed(games.cyclic_blocks(10, strength=1.0, order=0.6))),
    *_of_size(31),
    ExactGame("cycle, 31", _fixed(games.cyclic(31, 0.9))),
    *_of_size(100),
    ExactGame("cyclic blocks, 100", _fixed(games.cyclic_blocks(100))),
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Games of one size, of all seeds.

    Args:
        names: the name and the seed of each.
        table: P(y > y') [C, N, N].
        estimate: the same of `VOTES` votes on each pair [C, N, N].
        log_reference: log mu, of standard normal logits [C, N].
    """

    names: list[tuple[str, int]]
    table: Tensor
    estimate: Tensor
    log_reference: Tensor


def batches(seeds: list[int], small: bool = False) -> list[Batch]:
    """All games of these seeds, the first few alone if ``small``, size by size."""
    by_size: dict[int, list[tuple[tuple[str, int], Tensor, Tensor, Tensor]]] = {}
    for seed in seeds:
        for number, game in enumerate(GAMES[:_FEW] if small else GAMES):
            own = 1000 * seed + number  # none has the draws of another
            table = game.make(own)
            rng = torch.Generator().manual_seed(own + 500)
            logits = torch.randn(table.shape[:2], generator=rng, dtype=torch.float64)
            rows = by_size.setdefault(table.shape[-1], [])
            estimate = games.of_votes(table, VOTES, own + 700)
            rows.append(((game.name, seed), table, estimate, logits.log_softmax(-1)))
    return [
        Batch(
            [row[0] for row in rows], *(torch.cat(part) for part in [*zip(*rows, strict=True)][1:])
        )
        for rows in by_size.values()
    ]
