"""``nlhf solve``: the Nash policy of a table of votes or preferences, with its certificate.

Without ``--algorithm`` it gives the equilibrium; with one it also plays that algorithm in closed
form and measures every round. All of it is float64. What is wrong with the input is found before
anything is computed. docs/command_line.md says what the ``.npz`` holds, and in which shapes.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nlhf_zoo import __version__
from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.cli.files import refuse_output
from nlhf_zoo.cli.parser import SentenceParser
from nlhf_zoo.cli.solve import reading
from nlhf_zoo.cli.solve.annotators import (
    arrays_of,
    check_annotators,
    print_annotators,
    solve_annotators,
)
from nlhf_zoo.cli.solve.reading import Game
from nlhf_zoo.data.tables.files import require_memory
from nlhf_zoo.data.tables.preflib import Unranked
from nlhf_zoo.data.tables.votes import VoteFormat
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written
from nlhf_zoo.records import starts_as
from nlhf_zoo.solvers import (
    Solution,
    check_beta,
    prepare_game,
    regularised_nash,
    unregularised_nash,
    win_rates,
)
from nlhf_zoo.solvers.payoffs import PayoffName, largest_payoff

_SEVERAL = "not unique: the nearest of several to the reference, the limit of small beta"
_CERTIFIED = 1e-9  # an equilibrium that is less exact than this is used with a warning
CURVES = {  # that the file holds, and their names in print
    "exploitability": "exploitability",
    "kl_to_nash": "KL to the equilibrium",
    "span": "span",
}
# Rounds are measured in chunks: at most so many rounds, numbers in their log-policies, and
# multiplications in one product of theirs (the progress bar moves between chunks).
_CHUNK_ROUNDS, _CHUNK_NUMBERS, _CHUNK_WORK = 4096, 2**20, 2**31
_MOST_PROMPTS = 20  # that are shown


def main(args: list[str]) -> None:
    """Run ``nlhf solve`` with what stands behind it on the command line."""
    title = "The Nash policy of preferences, and its certificate."
    parser = SentenceParser(prog="nlhf solve", description=title)
    parser.add_function_arguments(solve_files, skip={"algorithm", "arguments"})
    # By hand: as a union with None it would be refused in the words of both.
    algorithm = "an algorithm to play in closed form, such as NashMP"
    parser.add_argument("--algorithm", type=PolicyOptimizer, help=algorithm)
    config = parser.parse_args(args)
    arguments = parser.dump(config, format="json", skip_unset=False)
    try:
        parts = parser.instantiate(config)
    except ValueError as error:
        raise UserError(f"--algorithm: {error}") from error
    solve_files(**parts, arguments=arguments)


def solve_files(
    votes: Path | None = None,
    matrix: Path | None = None,
    prior: float | None = None,
    format: VoteFormat = "votes",  # the option's name
    unranked: Unranked = "refuse",
    reference: Path | None = None,
    start: Path | None = None,
    beta: float = 0.1,
    payoff: PayoffName = "identity",
    bound: float | None = None,
    worst_case: list[Path] | None = None,
    algorithm: PolicyOptimizer | None = None,
    updates: int = 500,
    output: Path | None = None,
    arguments: str = "{}",
) -> None:
    """Solve a game, play an algorithm on it, print the table and write the file.

    Args:
        votes: a CSV file of votes with the columns winner, loser and, optionally, prompt, count and
            tie; or ballots of PrefLib, .soc, .soi, .toc or .toi.
        matrix: a .npy or .csv file of P(y > y'), [N, N], or [C, N, N] for several games.
        prior: pseudo-ties that are added to each pair of alternatives of the votes; 1 if not given.
        format: of a CSV of votes; an arena has the columns model_a, model_b and winner.
        unranked: what a ballot of PrefLib says of alternatives that it does not rank: refuse such a
            ballot; below (all that it ranks, and tied with each other); or uncompared.
        reference: a .npy or .csv file of the reference policy's probabilities, in the order of the
            alternatives; uniform if not given. At beta = 0 it decides between several equilibria.
        start: a .npy or .csv file of probabilities where the algorithm starts; the reference if not
            given.
        beta: temperature of the regularisation towards the reference; 0 solves the game without it.
        payoff: of the game, a function of the margin P - 1/2: identity; sign, who wins by whatever
            margin; or log_odds, log P / (1 - P).
        bound: largest payoff of log_odds; what is beyond it is cut to it.
        worst_case: files of other annotators, of the same kind and with the same alternatives: the
            policy is for the worst served of all, and the certificate has both sides.
        algorithm: an algorithm to play in closed form, such as NashMP.
        updates: rounds of the algorithm.
        output: a .npz file to write.
        arguments: the arguments as they were given, in JSON, for the output file.
    """
    check_beta(beta, "--beta")
    reading.check_combination(votes, matrix, prior, updates)
    reading.check_votes(votes, format, unranked)
    reading.check_algorithm(algorithm, start, beta)
    of_margin = reading.check_payoff(payoff, bound)
    others = worst_case or []
    if worst_case is not None:
        check_annotators(others, algorithm)
    refuse_output("--output", output, [votes, matrix, reference, start, *others])

    def read(votes: Path | None, matrix: Path | None) -> Game:
        game = reading.read_game(votes, matrix, 1.0 if prior is None else prior, format, unranked)
        return replace(game, preference=of_margin.of_table(game.preference, str(game.where)))

    game = read(votes, matrix)
    if worst_case is not None:
        annotators = [game, *(read(*((f, None) if votes else (None, f))) for f in others)]
        log_reference = reading.read_log_policy(reference, "reference", game)
        found = solve_annotators(annotators, log_reference, beta)
        if output is not None:
            _save(output, arrays_of(annotators, found), arguments)
        print_annotators(annotators, found, _title(beta, payoff))
        return
    payoff_bound = of_margin.bound
    if math.isinf(payoff_bound):
        payoff_bound = largest_payoff(game.preference)
    reading.check_steps(algorithm, beta, payoff_bound)
    log_reference = reading.read_log_policy(reference, "reference", game)
    log_start = log_reference if start is None else reading.read_log_policy(start, "start", game)
    rounds = None
    if algorithm is not None:
        size = 8 * (len(CURVES) + algorithm.adaptive) * (updates + 1) * len(game.support)
        require_memory(size, f"a trajectory of {updates} updates")
        starts = {"policy": log_start, "reference": log_reference}
        players = {name: starts[starts_as(name)] for name in ("policy", *algorithm.players)}
        rounds = ClosedFormRounds(
            algorithm, beta, game.preference, log_reference, players, payoff_bound=payoff_bound
        )

    if beta == 0:
        nash = unregularised_nash(game.preference, game.support, log_reference)
    else:
        nash = regularised_nash(game.preference, log_reference, beta, progress=True)
    run = None if rounds is None else play(rounds, updates, log_start, log_reference, nash)
    if output is not None:
        _write(output, game, nash, run, arguments)
    print_tables(game, nash, beta, payoff, run, type(algorithm).__name__)
    if not (worst := nash.exploitability.max().item()) <= _CERTIFIED:
        print(
            f"warning: the equilibrium is exact to an exploitability of {worst:.1e} only, "
            "and so is what is measured against it",
            file=sys.stderr,
        )


def _write(output: Path, game: Game, nash: Solution, run: Run | None, arguments: str) -> None:
    games, num = game.support.shape
    which = 0 if games == 1 else slice(None)  # a single game stands without a dimension of its own
    arrays: dict[str, Any] = {
        "log_policy": (nash if run is None else run).log_policy.numpy()[which],
        "nash_log_policy": nash.log_policy.numpy()[which],
        "nash_exploitability": nash.exploitability.numpy()[which],
        "nash_unique": nash.unique.numpy()[which],
        "names": np.array([own + [""] * (num - len(own)) for own in game.names])[which],
    }
    if run is not None:
        arrays |= {name: curve.numpy()[:, which] for name, curve in run.curves.items()}
        own = run.queries.dim() == 2  # each game's
        arrays["queries"] = run.queries.numpy()[:, which] if own else run.queries.numpy()
    _save(output, arrays, arguments)


def _save(output: Path, arrays: dict[str, Any], arguments: str) -> None:
    arrays |= {"version": __version__, "arguments": arguments}
    try:
        with written(output) as beside, beside.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"--output {output} could not be written: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Run:
    """What an algorithm did."""

    log_policy: Tensor  # its last iterate [C, N]
    curves: dict[str, Tensor]  # metrics by name, [updates + 1, C] each
    # Cumulative, for each prompt, int [updates + 1]; [updates + 1, C] of an adaptive algorithm.
    queries: Tensor


def play(
    rounds: ClosedFormRounds, updates: int, log_start: Tensor, log_reference: Tensor, nash: Solution
) -> Run:
    """Play and measure in chunks, so that the memory does not grow with the number of updates."""
    name = type(rounds.algorithm).__name__
    prepared = prepare_game(rounds.table, log_reference, rounds.beta, nash.log_policy)
    games, num = log_start.shape
    curves = {curve: torch.empty(updates + 1, games, dtype=torch.float64) for curve in CURVES}
    adaptive = rounds.algorithm.adaptive
    queries = torch.zeros((updates + 1, games) if adaptive else updates + 1, dtype=torch.long)
    last = log_start

    def measure(first: int, log_policies: Tensor) -> None:
        metrics = prepared.measure(log_policies)
        for curve in CURVES:
            curves[curve][first : first + len(log_policies)] = metrics[curve]

    measure(0, last[None])
    size = games * num
    chunk = max(1, min(_CHUNK_ROUNDS, _CHUNK_NUMBERS // size, _CHUNK_WORK // (size * num)))
    with tqdm(total=updates, desc=name, unit="update", delay=2, file=sys.stderr) as progress:
        for done in range(0, updates, chunk):
            now = rounds.run(done, min(chunk, updates - done))
            end = done + len(now.log_policy)
            measure(done + 1, now.log_policy)
            queries[done + 1 : end + 1] = queries[done] + now.queries
            last = now.log_policy[-1]
            if curves["exploitability"][end].isnan().any():  # what is no number never becomes one
                broken = now.log_policy.log_softmax(-1).isnan().any(-1).any(-1)
                update = done + 1 + int(broken.long().argmax())
                raise UserError(f"{name} diverged at update {update}: give it a smaller step")
            progress.update(end - done)
    return Run(last.log_softmax(-1), curves, queries)


def _title(beta: float, payoff: PayoffName) -> str:
    return f"beta = {beta:g}" + ("" if payoff == "identity" else f", payoff {payoff}")


def print_tables(
    game: Game, nash: Solution, beta: float, payoff: PayoffName, run: Run | None, name: str
) -> None:
    """Print the equilibrium, and beside it what an algorithm has reached."""
    games, of_preference = len(game.support), payoff == "identity"
    shape = reading.shape(game.support)
    print(f"Nash equilibrium of {game.where}: {shape}, {_title(beta, payoff)}")
    figures = {"equilibrium": {"exploitability": nash.exploitability}}
    columns = {"probability": nash.log_policy.exp()}
    # Of another payoff it is no share of wins, and 1/2 stays what a tie is worth.
    against = "win rate" if of_preference else "payoff"
    columns[against] = win_rates(game.preference, nash.log_policy)
    if run is not None:
        asked = sorted({*run.queries[-1].flatten().tolist()})
        queries = f"{asked[0]}" if len(asked) == 1 else f"{asked[0]} to {asked[-1]}"
        print(f"{name}: {len(run.queries) - 1} updates, {queries} queries for each prompt")
        figures[name] = {title: run.curves[curve][-1] for curve, title in CURVES.items()}
        columns[name] = run.log_policy.exp()
    for i, (prompt, names) in enumerate(zip(game.prompts, game.names, strict=True)):
        if i == _MOST_PROMPTS:
            print(f"\n{games - i} more prompts are not shown")
            break
        print("\n" + (f"{reading.short(prompt)}\n" if prompt else ""), end="")
        reading.print_alternatives(names, {title: column[i] for title, column in columns.items()})
        for who, values in figures.items():
            print(f"{who}: " + ", ".join(f"{what} {v[i]:.3g}" for what, v in values.items()))
        if not nash.unique[i]:
            print(_SEVERAL)
    if games > 1:
        print(f"\nmean and maximum over {games} prompts")
        for who, values in figures.items():
            both = (f"{what} {v.mean():.3g} and {v.max():.3g}" for what, v in values.items())
            print(f"{who}: " + ", ".join(both))
        if several := int((~nash.unique).sum()):
            print(f"{several} of {games} prompts have several equilibria")
