"""``nlhf solve``: the Nash policy of a table of votes or preferences, with its certificate.

Without ``--algorithm`` it gives the equilibrium; with one it also plays that algorithm in closed
form and measures every round. All of it is float64. What is wrong with the input is found before
anything is computed. docs/command_line.md says what the ``.npz`` holds, and in which shapes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from nlhf_zoo import __version__
from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
from nlhf_zoo.cli.parser import SentenceParser
from nlhf_zoo.cli.solve.playing import CURVES, Run, play
from nlhf_zoo.cli.solve.printing import print_tables
from nlhf_zoo.cli.solve.reading import (
    Game,
    check_algorithm,
    check_combination,
    check_output,
    read_game,
    read_log_policy,
)
from nlhf_zoo.data.tables.files import require_memory
from nlhf_zoo.errors import UserError
from nlhf_zoo.files import written
from nlhf_zoo.records import starts_as
from nlhf_zoo.solvers import Solution, check_beta, regularised_nash, unregularised_nash

_CERTIFIED = 1e-9  # an equilibrium that is less exact than this is used with a warning


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
    reference: Path | None = None,
    start: Path | None = None,
    beta: float = 0.1,
    algorithm: PolicyOptimizer | None = None,
    updates: int = 500,
    output: Path | None = None,
    arguments: str = "{}",
) -> None:
    """Solve a game, play an algorithm on it, print the table and write the file.

    Args:
        votes: a CSV file of votes with the columns winner, loser and, optionally, prompt, count and
            tie.
        matrix: a .npy or .csv file of P(y > y'), [N, N], or [C, N, N] for several games.
        prior: pseudo-ties that are added to each pair of alternatives of the votes; 1 if not given.
        reference: a .npy or .csv file of the reference policy's probabilities, in the order of the
            alternatives; uniform if not given. At beta = 0 it has no influence.
        start: a .npy or .csv file of probabilities where the algorithm starts; the reference if not
            given.
        beta: temperature of the regularisation towards the reference; 0 solves the game without it.
        algorithm: an algorithm to play in closed form, such as NashMP.
        updates: rounds of the algorithm.
        output: a .npz file to write.
        arguments: the arguments as they were given, in JSON, for the output file.
    """
    check_beta(beta, "--beta")
    check_combination(votes, matrix, prior, updates)
    check_algorithm(algorithm, start, beta)
    check_output(output, [votes, matrix, reference, start])
    game = read_game(votes, matrix, 1.0 if prior is None else prior)
    log_reference = read_log_policy(reference, "reference", game)
    log_start = log_reference if start is None else read_log_policy(start, "start", game)
    rounds = None
    if algorithm is not None:
        size = 8 * len(CURVES) * (updates + 1) * len(game.support)
        require_memory(size, f"a trajectory of {updates} updates")
        starts = {"policy": log_start, "reference": log_reference}
        players = {name: starts[starts_as(name)] for name in ("policy", *algorithm.players)}
        rounds = ClosedFormRounds(algorithm, beta, game.preference, log_reference, players)

    if beta == 0:
        nash = unregularised_nash(game.preference, game.support)
    else:
        nash = regularised_nash(game.preference, log_reference, beta, progress=True)
    run = None if rounds is None else play(rounds, updates, log_start, log_reference, nash)
    if output is not None:
        _write(output, game, nash, run, arguments)
    print_tables(game, nash, beta, run, type(algorithm).__name__)
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
        "names": np.array([own + [""] * (num - len(own)) for own in game.names])[which],
        "version": __version__,
        "arguments": arguments,
    }
    if run is not None:
        arrays |= {name: curve.numpy()[:, which] for name, curve in run.curves.items()}
        arrays["queries"] = run.queries.numpy()
    try:
        with written(output) as beside, beside.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"--output {output} could not be written: {error.strerror}") from error
