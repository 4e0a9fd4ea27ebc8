"""``nlhf solve``: the Nash policy of a table of votes or preferences, with its certificate.

Without ``--algorithm`` it gives the equilibrium; with one it also plays that algorithm in closed
form and measures every round. All of it is float64. What is wrong with the input is found before
anything is computed. docs/command_line.md says what the ``.npz`` holds, and in which shapes.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace
from torch import Tensor

from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.cli.files import refuse_output
from nlhf_zoo.cli.parser import SentenceParser, as_user_errors, find_own_code
from nlhf_zoo.cli.solve import reading
from nlhf_zoo.cli.solve.annotators import arrays_of as annotators_arrays
from nlhf_zoo.cli.solve.annotators import check_annotators, print_annotators, solve_annotators
from nlhf_zoo.cli.solve.answers import (
    Invalid,
    arrays_of_answers,
    check_answers,
    judge_answers,
    print_after,
    print_before,
)
from nlhf_zoo.cli.solve.bootstrap import bootstrapped, check_bootstrap, check_voters
from nlhf_zoo.cli.solve.figure import check_figure, draw
from nlhf_zoo.cli.solve.playing import play, rounds_of
from nlhf_zoo.cli.solve.printing import print_tables, title_of
from nlhf_zoo.cli.solve.reading import Game
from nlhf_zoo.cli.solve.saving import arrays_of, save
from nlhf_zoo.cli.solve.solved import Solved
from nlhf_zoo.cli.solve.structure import structure_of
from nlhf_zoo.data.tables.ballots import Unranked
from nlhf_zoo.data.tables.votes import VoteFormat
from nlhf_zoo.data.texts import read_drawn
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import PreferenceOracle
from nlhf_zoo.solvers import (
    Solution,
    check_beta,
    equilibrium_intervals,
    regularised_nash,
    unregularised_nash,
)
from nlhf_zoo.solvers.payoffs import PayoffName, largest_payoff

_CERTIFIED = 1e-9  # an equilibrium that is less exact than this is used with a warning


def main(args: list[str]) -> None:
    """Run ``nlhf solve`` with what stands behind it on the command line."""
    title = "The Nash policy of preferences, and its certificate."
    parser = SentenceParser(prog="nlhf solve", description=title)
    parser.add_function_arguments(solve_files, skip={"algorithm", "oracle", "arguments"})
    # By hand: as a union with None it would be refused in the words of both.
    algorithm = "an algorithm to play in closed form, such as NashMP"
    parser.add_argument("--algorithm", type=PolicyOptimizer, help=algorithm)
    oracle = "who judges the responses, such as RewardModelOracle"
    parser.add_argument("--oracle", type=PreferenceOracle, enable_path=True, help=oracle)
    find_own_code()
    config = parser.parse_args(args)
    arguments = parser.dump(config, format="json", skip_unset=False)
    judge = config.pop("oracle")
    try:
        parts = parser.instantiate(config)
    except ValueError as error:
        raise UserError(f"--algorithm: {error}") from error
    if config.responses is not None:
        read_drawn(config.responses)  # before a model is loaded that would judge them
    if judge is not None:
        with as_user_errors():
            made = parser.instantiate(Namespace(oracle=judge))  # type: ignore[no-untyped-call]
        parts.oracle = made.oracle
    solve_files(**parts, arguments=arguments)


def solve_files(
    votes: Path | None = None,
    matrix: Path | None = None,
    prior: float | None = None,
    format: VoteFormat = "auto",  # the option's name
    unranked: Unranked = "refuse",
    responses: Path | None = None,
    oracle: PreferenceOracle | None = None,
    invalid: Invalid = "refuse",
    device: str = "auto",
    reference: Path | None = None,
    start: Path | None = None,
    beta: float = 0.1,
    payoff: PayoffName = "identity",
    bound: float | None = None,
    worst_case: list[Path] | None = None,
    algorithm: PolicyOptimizer | None = None,
    updates: int = 500,
    bootstrap: int | None = None,
    level: float | None = None,
    seed: int | None = None,
    figure: Path | None = None,
    output: Path | None = None,
    arguments: str = "{}",
) -> None:
    """Solve a game, play an algorithm on it, print the table and write the file.

    Args:
        votes: a file of votes, rankings or an arena's rows in CSV or JSON; or ballots of PrefLib,
            .soc, .soi, .toc or .toi.
        matrix: a .npy or .csv file of P(y > y'), [N, N], or [C, N, N] for several games.
        prior: pseudo-ties that are added to each pair of alternatives of the votes; 1 if not given.
        format: of votes in CSV or JSON: votes, with winner and loser; arena, with model_a, model_b
            and winner; rankings, with ranking or rank1, rank2, ...; auto goes by the columns.
        unranked: what a ballot says of alternatives that it does not rank: refuse such a ballot;
            below (all that it ranks, and tied with each other); or uncompared.
        responses: a .jsonl file of answers to a prompt, or to several, which the oracle compares:
            lines of {"prompt": ..., "response": ...}, as of nlhf sample, or of prompt and
            responses.
        oracle: who judges the responses.
        invalid: what becomes of answers of which the oracle cannot judge all pairs: refuse, or
            leave_out.
        device: where the oracle lies; auto is a GPU where there is one.
        reference: a .npy or .csv file of the reference policy's probabilities, in the order of the
            alternatives; uniform if not given, and of responses the shares in which they were
            drawn. At beta = 0 it decides between several equilibria.
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
        bootstrap: resamples of the voters, such as 1000: intervals of each probability, and how
            often each alternative is the Condorcet winner or is played at all.
        level: share of the resamples that an interval holds; 0.95 if not given.
        seed: of the resamples; 0 if not given.
        figure: a .png or .svg file to draw: the equilibrium, with intervals, and who beats whom.
        output: a .npz file to write.
        arguments: the arguments as they were given, in JSON, for the output file.
    """
    check_beta(beta, "--beta")
    reading.check_combination(votes, matrix, responses, prior, updates)
    reading.check_votes(votes, format, unranked)
    reading.check_algorithm(algorithm, start, beta)
    of_margin = reading.check_payoff(payoff, bound)
    reading.check_steps(algorithm, beta, of_margin.bound)
    others = worst_case or []
    if worst_case is not None:
        check_annotators(others, algorithm)
    how = check_bootstrap(bootstrap, level, seed, votes, worst_case)
    inputs = [votes, matrix, responses, reference, start, *others]
    refuse_output("--output", output, inputs)
    check_figure(figure, worst_case, [*inputs, output])
    policies = {"reference": reference, "start": start}
    check_answers(responses, oracle, invalid, device, worst_case is not None)
    judged = judge_answers(responses, oracle, invalid, device, policies)

    def read(votes: Path | None, matrix: Path | None) -> Game:
        return reading.read_game(votes, matrix, 1.0 if prior is None else prior, format, unranked)

    def paid(game: Game) -> Game:
        return replace(game, preference=of_margin.of_table(game.preference, str(game.where)))

    preferences = read(votes, matrix) if judged is None else judged.game
    check_voters(preferences, how)
    game = paid(preferences)
    if worst_case is not None:
        annotators = [game, *(paid(read(*((f, None) if votes else (None, f)))) for f in others)]
        log_reference = reading.read_log_policy(reference, "reference", game)
        _for_the_worst_served(
            annotators, log_reference, beta, title_of(beta, payoff), output, arguments
        )
        return
    largest = largest_payoff(game.preference) if math.isinf(of_margin.bound) else of_margin.bound
    reading.check_steps(algorithm, beta, largest)
    log_reference = reading.read_log_policy(reference, "reference", game)
    log_start = log_reference if start is None else reading.read_log_policy(start, "start", game)
    rounds = None
    if algorithm is not None:
        rounds = rounds_of(
            algorithm, beta, game.preference, log_start, log_reference, updates, largest
        )

    drawn = bootstrapped(game, of_margin, log_reference, beta, how)
    if beta == 0:
        nash = unregularised_nash(game.preference, game.support, log_reference)
    else:
        nash = regularised_nash(game.preference, log_reference, beta, progress=True)
    solved = Solved(
        game,
        beta,
        payoff,
        nash,
        equilibrium_intervals(game.preference, nash, game.support),
        structure_of(preferences),
        drawn,
        None if rounds is None else play(rounds, updates, log_start, log_reference, nash),
        type(algorithm).__name__,
    )
    if output is not None:
        save(output, arrays_of(solved) | arrays_of_answers(judged), arguments)
    print_before(judged)
    print_tables(solved)
    print_after(judged, solved.rates, beta, solved.of_rates)
    if figure is not None:
        draw(solved, figure)
    _warn_of_certificate(nash)


def _warn_of_certificate(nash: Solution) -> None:
    if not (worst := nash.exploitability.max().item()) <= _CERTIFIED:
        print(
            f"warning: the equilibrium is exact to an exploitability of {worst:.1e} only, "
            "and so is what is measured against it",
            file=sys.stderr,
        )


def _for_the_worst_served(
    annotators: list[Game],
    log_reference: Tensor,
    beta: float,
    title: str,
    output: Path | None,
    arguments: str,
) -> None:
    found = solve_annotators(annotators, log_reference, beta)
    if output is not None:
        save(output, annotators_arrays(annotators, found), arguments)
    print_annotators(annotators, found, title)
