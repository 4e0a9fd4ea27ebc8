"""The exact part: every closed form on every game, in one batch for each size."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlhf_zoo.algorithms.batched_rounds import BatchedRounds, Row, can_be_batched
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.algorithms.products import products_of_rounds
from nlhf_zoo.cli.bench.games import BETAS, Batch, batches
from nlhf_zoo.cli.bench.methods import Method
from nlhf_zoo.cli.bench.played import Played, points
from nlhf_zoo.cli.bench.results import EXPLOITABILITY, HELD_OUT
from nlhf_zoo.solvers import exploitability


def play(
    methods: Sequence[Method], seeds: list[int], queries: int, small: bool = False
) -> list[Played]:
    """Play all methods that have a closed form, at all temperatures.

    Each plays each game twice: by its table, and by an estimate of it, and is measured by the table
    both times.

    Args:
        methods: those without a closed form are left out.
        seeds: of the games.
        queries: products P o that each may ask for, for each game.
        small: play a few games alone.
    """
    rows = [(m, beta) for m in methods if m.algorithm.closed_form for beta in BETAS]
    names: list[tuple[str, int]] = []
    found: list[list[Tensor]] = [[] for _ in rows]
    for batch in batches(seeds, small):
        names += batch.names
        for own, of_size in zip(found, _curves(rows, _twice(batch), queries), strict=True):
            own.append(of_size.unflatten(-1, (2, -1)))
    played = []
    for (method, beta), of_sizes in zip(rows, found, strict=True):
        curves: NDArray[np.float64] = torch.cat(of_sizes, -1).numpy()  # [points, 2, games]
        final = {
            measure: dict(zip(names, curves[-1, place].tolist(), strict=True))
            for place, measure in enumerate((EXPLOITABILITY, HELD_OUT))
        }
        played.append(Played(method.name, f"β = {beta:g}", final, curves[:, 0]))
    return played


def _twice(batch: Batch) -> Batch:
    """Games that are played by their tables, and behind them those that are by their estimates."""
    table, asked = batch.table, torch.cat([batch.table, batch.estimate])
    return Batch(
        2 * batch.names, torch.cat([table, table]), asked, torch.cat(2 * [batch.log_reference])
    )


def _curves(rows: Sequence[tuple[Method, float]], batch: Batch, queries: int) -> list[Tensor]:
    """Exploitability by the tables of each row at the points [points, C], by estimates played."""
    together = [i for i, (method, _) in enumerate(rows) if can_be_batched(method.algorithm)]
    curves: dict[int, Tensor] = {}
    if together:
        of_batch = _batched(
            [Row(rows[i][0].algorithm, rows[i][1]) for i in together], batch, queries
        )
        curves |= dict(zip(together, of_batch, strict=True))
    for number, (method, beta) in enumerate(rows):
        if number not in curves:
            curves[number] = _alone(Row(method.algorithm, beta), batch, queries)
    return [curves[number] for number in range(len(rows))]


def _batched(rows: list[Row], batch: Batch, queries: int) -> list[Tensor]:
    """Play rows in one batch; each leaves it when its budget is spent."""
    asked = {id(row.algorithm): products_of_rounds(row.algorithm, queries) for row in rows}
    # Rounds that each row has played when it has asked so much; a round is never begun for less.
    stops = [[bisect_right(asked[id(row.algorithm)], q) for q in points(queries)] for row in rows]
    curves = [batch.table.new_zeros(len(points(queries)), len(batch.table)) for _ in rows]
    playing, left = BatchedRounds(rows, batch.estimate, batch.log_reference), [*range(len(rows))]
    before = 0
    for stop in sorted({stop for own in stops for stop in own}):
        playing.play(stop - before)
        log_policies = playing.log_policy()
        for place, number in enumerate(left):
            if stop in stops[number]:
                measured = _measured(batch, log_policies[place], rows[number].beta)
                here = [i for i, own in enumerate(stops[number]) if own == stop]
                curves[number][here] = measured
        going = [place for place, number in enumerate(left) if stops[number][-1] > stop]
        if going and len(going) < len(left):
            playing.keep(going)
            left = [left[place] for place in going]
        before = stop
    return curves


def _alone(row: Row, batch: Batch, queries: int) -> Tensor:
    """Play a row by itself, whose steps depend on the game."""
    log_mu = batch.log_reference
    players = dict.fromkeys(("policy", *row.algorithm.players), log_mu)
    engine = ClosedFormRounds(row.algorithm, row.beta, batch.estimate, log_mu, players)
    trajectory = engine.run(0, queries)
    asked = trajectory.queries.reshape(len(trajectory.queries), -1).expand(-1, len(log_mu))
    start = _measured(batch, log_mu, row.beta)
    curve = []
    for point in points(queries):
        done = (asked <= point).sum(0)  # rounds of each game [C]
        log_policy = trajectory.log_policy[(done - 1).clamp_min(0), torch.arange(len(log_mu))]
        curve.append(torch.where(done > 0, _measured(batch, log_policy, row.beta), start))
    return torch.stack(curve)


def _measured(batch: Batch, log_policy: Tensor, beta: float) -> Tensor:
    # What has left the numbers is infinitely far off.
    figures = exploitability(batch.table, log_policy, batch.log_reference, beta)
    return figures.nan_to_num(torch.inf, torch.inf)
