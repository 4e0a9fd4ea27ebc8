"""Seeded matrix games: preferences P [C, N, N] with P + P^T = 1 and a diagonal of 1/2, both exact.

Every function is pure: a game depends on its arguments and ``seed`` alone, and on no global state.
C independent games are made at once; N is the number of actions. float32 halves the memory of large
games and gives the same game as float64 up to rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nlhf_zoo.data.tables.files import require_memory
from nlhf_zoo.errors import UserError


def uniform_random(
    num_games: int, num_actions: int, seed: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Games whose preferences below the diagonal are uniform in [0, 1], [C, N, N].

    They are drawn with 24 bits: one minus each is then exact, in float32 too.
    """
    _size(num_games, num_actions, dtype)
    return complete(_uniform((num_games, num_actions, num_actions), seed, torch.float32).to(dtype))


def bradley_terry(
    num_games: int,
    num_actions: int,
    seed: int,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Transitive games P(y > y') = sigmoid(scale (s - s')), s standard normal, [C, N, N]."""
    _size(num_games, num_actions, dtype)
    score = bradley_terry_scores(num_games, num_actions, seed, scale, dtype)
    return complete(torch.sigmoid(score[:, :, None] - score[:, None, :]))


def bradley_terry_scores(
    num_games: int,
    num_actions: int,
    seed: int,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The scores scale s of these games [C, N]."""
    if not math.isfinite(scale):
        raise UserError(f"scale must be a finite number, but it is {scale}")
    rng = torch.Generator().manual_seed(seed)
    score = scale * torch.randn(num_games, num_actions, generator=rng, dtype=torch.float64)
    return score.to(dtype)


def cyclic(num_actions: int, strength: float = 0.9, dtype: torch.dtype = torch.float64) -> Tensor:
    """One regular tournament: each action beats the next (N - 1) / 2, [1, N, N].

    It does so with probability ``strength``; three actions are rock, paper, scissors. With a
    uniform reference the equilibrium is uniform at every beta.
    """
    _odd("num_actions", num_actions, 3)
    _size(1, num_actions, dtype)
    _probability("strength", strength)
    return complete(_tournament(num_actions, strength).to(dtype))


def cyclic_blocks(
    num_actions: int,
    num_blocks: int = 2,
    block_size: int = 5,
    strength: float = 0.9,
    order: float = 0.8,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """One game of cycles under an order, with cloned actions, [1, N, N].

    There are D = num_blocks * block_size distinct actions. An action beats those of every later
    block with probability ``order``, and the next (block_size - 1) / 2 of its own block, a cycle,
    with probability ``strength``; ``block_size`` is odd, and 1 makes a plain order. Action a is a
    clone of the distinct action floor(a D / N), N >= D: clones are neighbours and tie with each
    other, and each distinct action has as many as any other, give or take one. When D divides N,
    updates from a uniform reference move the D classes of clones alike whatever N.
    """
    _at_least("num_blocks", num_blocks, 1)
    _odd("block_size", block_size, 1)
    _probability("strength", strength)
    _probability("order", order)
    distinct = num_blocks * block_size
    _at_least("num_actions", num_actions, distinct)
    _size(1, num_actions, dtype)
    block = torch.arange(distinct) // block_size
    across = _either(block[:, None] < block, order)
    within = _tournament(block_size, strength).repeat(1, num_blocks, num_blocks)[0]
    game = complete(torch.where(block[:, None] == block, within, across)[None]).to(dtype)
    clone_of = torch.arange(num_actions) * distinct // num_actions
    return game[:, clone_of][:, :, clone_of]


def comal(dtype: torch.dtype = torch.float64) -> Tensor:
    """COMAL's game (arXiv:2410.23223): P(b > a) = P(c > b) = 0.9, P(a > c) = 0.8, [1, 3, 3]."""
    lower = torch.zeros(1, 3, 3, dtype=torch.float64)
    lower[0, 1, 0], lower[0, 2, 1], lower[0, 2, 0] = 0.9, 0.9, 1 - 0.8
    return complete(lower.to(dtype))


def sine_game(num_actions: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A cycle and a quality: P = 1/2 + 0.3 sin(a - a') + 0.2 (s - s'), [1, N, N].

    Angles a are uniform in [0, 2 pi) and qualities s in [0, 1]: entries lie in [0, 1], and the
    game is of rank at most five whatever N.
    """
    _size(1, num_actions, dtype)
    angle, quality = _uniform((2, num_actions), seed, torch.float64).to(dtype)
    angle, quality = 2 * math.pi * angle, 0.2 * quality
    game = torch.sin(angle[:, None] - angle).mul_(0.3).add_(0.5)
    game += quality[:, None] - quality
    # The bound is reached: rounding alone may step over it.
    return complete(game[None].clamp_(0, 1))


def annotators(
    num_actions: int,
    num_annotators: int,
    cycle: int | None,
    seed: int,
    noise: float = 0.1,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Annotators, each with a ranking of its own: P is the share that prefers, [1, N, N].

    Each annotator is transitive; with ``cycle``, an odd number, the majority is not (Condorcet).
    Annotators then hold the ranking 0, 1, 2, ... of the first ``cycle`` actions or one of its
    rotations, in equal numbers, so that each of these beats the next (cycle - 1) / 2; the other
    actions follow, in an order that each annotator draws. A share ``noise`` of annotators, and
    whoever is left over, draw a ranking of all actions; so does everyone where ``cycle`` is None.

    Raises:
        UserError: there are too few annotators, or too much noise, for the cycle to be certain.
    """
    _size(1, num_actions, torch.float64)
    _at_least("num_annotators", num_annotators, 1)
    _probability("noise", noise)
    # The action with the smallest draw is an annotator's favourite.
    rank = _uniform((num_annotators, num_actions), seed, torch.float64)
    if cycle is not None:
        _odd("cycle", cycle, 3)
        _at_least("num_actions", num_actions, cycle)
        each = int((1 - noise) * num_annotators / cycle)
        if each * (cycle + 1) <= num_annotators:  # all others may be against the cycle
            raise UserError(
                f"a majority cycle of {cycle} actions is not certain with {num_annotators} "
                f"annotators and noise {noise}: ask for more annotators or less noise"
            )
        rotation = torch.arange(each * cycle)[:, None] % cycle
        rank[: each * cycle, :cycle] = ((torch.arange(cycle) - rotation) % cycle - cycle).double()
    share = torch.zeros(num_actions, num_actions, dtype=torch.float64)
    for own in rank:  # one annotator at a time: [N, N] rather than [annotators, N, N]
        share += own[:, None] < own
    return complete((share / num_annotators).to(dtype)[None])


def of_votes(game: Tensor, votes: int, seed: int) -> Tensor:
    """What so many votes on each pair say of a game: shares of wins, [C, N, N].

    Each vote is drawn by itself with the game's probability, P(y > y').
    """
    rng = torch.Generator().manual_seed(seed)
    won = torch.zeros_like(game)
    for _ in range(votes):
        won += torch.rand(game.shape, generator=rng, dtype=torch.float64) < game
    return complete(won / votes)


def complete(lower: Tensor) -> Tensor:
    """The game of which ``lower`` holds the part below the diagonal, [C, N, N].

    P(y' > y) = 1 - P(y > y') above the diagonal, which adds up to 1 exactly in floating point.
    """
    game = lower.tril(-1)
    game += (1 - game.mT).triu_(1)
    game.diagonal(dim1=-2, dim2=-1).fill_(0.5)
    return game


def _tournament(num_actions: int, strength: float) -> Tensor:
    """``strength`` where the column is one of the (N - 1) / 2 that follow the row, [1, N, N]."""
    action = torch.arange(num_actions)
    ahead = (action - action[:, None]) % num_actions
    return _either(ahead <= num_actions // 2, strength)[None]


def _either(wins: Tensor, probability: float) -> Tensor:
    """``probability`` where it wins and one minus it elsewhere, float64."""
    lost = torch.full(wins.shape, 1 - probability, dtype=torch.float64)
    return lost.masked_fill_(wins, probability)


def _uniform(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _size(num_games: int, num_actions: int, dtype: torch.dtype) -> None:
    _at_least("num_games", num_games, 1)
    _at_least("num_actions", num_actions, 2)
    shape = [num_games, num_actions, num_actions]
    require_memory(3 * math.prod(shape) * dtype.itemsize, f"a game {shape}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} must be at least {least}, but it is {value}")


def _odd(name: str, value: int, least: int) -> None:
    _at_least(name, value, least)
    if value % 2 == 0:
        raise UserError(
            f"{name} must be odd, for a cycle in which each beats as many, but it is {value}"
        )


def _probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name} must be a probability in [0, 1], but it is {value}")
