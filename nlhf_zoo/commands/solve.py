"""``nlhf solve``: the Nash policy of a table of votes or preferences, with its certificate.

Without ``--algorithm`` it gives the equilibrium; with one it also plays that algorithm in closed
form and measures every round. All of it is float64. What is wrong with the input is found before
anything is computed.

The ``.npz`` holds, with [N] for one game and [C, N] for several,

- ``log_policy``: the last iterate; without an algorithm the equilibrium;
- ``nash_log_policy`` and ``nash_exploitability`` ([] or [C]), its certificate;
- ``names``: the alternatives as text, "" where a prompt has fewer than others;
- with an algorithm only, one row an update and the start in row 0, [updates + 1] or
  [updates + 1, C]: ``exploitability``, ``kl_to_nash`` = KL(pi* || pi) and ``span``, and ``queries``
  [updates + 1], cumulative for each prompt;
- ``version`` of nlhf_zoo, and ``arguments`` as JSON.
"""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from tqdm import tqdm

from nlhf_zoo import __version__, algorithms
from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.closed_form import ClosedFormRounds
from nlhf_zoo.data.tables import read_distribution, read_matrix, require_memory
from nlhf_zoo.data.votes import read_votes
from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers import (
    Solution,
    check_beta,
    prepare_game,
    regularised_nash,
    unregularised_nash,
    win_rates,
)

_PROGRAM = "nlhf solve"
_CERTIFIED = 1e-9  # an equilibrium that is less exact than this is used with a warning
_CURVES = {  # that the file holds, and their names in print
    "exploitability": "exploitability",
    "kl_to_nash": "KL to the equilibrium",
    "span": "span",
}
_MOST_ALTERNATIVES = 30  # that a table shows
_MOST_PROMPTS = 20
_MOST_CHARACTERS = 60  # of a name
# Rounds are measured in chunks: at most so many rounds, numbers in their log-policies, and
# multiplications in one product of theirs (the progress bar moves between chunks).
_CHUNK_ROUNDS, _CHUNK_NUMBERS, _CHUNK_WORK = 4096, 2**20, 2**31


def main(args: list[str]) -> None:
    """Run ``nlhf solve``.

    Args:
        args: what stands behind ``nlhf solve``.

    Raises:
        UserError: the input cannot be used.
        SystemExit: the arguments cannot be parsed (exit code 2), or help was asked for.
    """
    title = "The Nash policy of preferences, and its certificate."
    parser = _Parser(prog=_PROGRAM, description=title)
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

    Raises:
        UserError: the input cannot be used.
    """
    check_beta(beta, "--beta")
    _check_combination(votes, matrix, prior, updates)
    _check_algorithm(algorithm, start, beta)
    _check_output(output, [votes, matrix, reference, start])
    game = _read_game(votes, matrix, 1.0 if prior is None else prior)
    log_reference = _read_log_policy(reference, "reference", game)
    log_start = log_reference if start is None else _read_log_policy(start, "start", game)
    rounds = None
    if algorithm is not None:
        size = 8 * len(_CURVES) * (updates + 1) * len(game.support)
        require_memory(size, f"a trajectory of {updates} updates")
        players = dict.fromkeys(("policy", *algorithm.players), log_start)
        if "magnet" in players:  # it stands in for the reference, until it first moves
            players["magnet"] = log_reference
        rounds = ClosedFormRounds(algorithm, beta, game.preference, log_reference, players)

    if beta == 0:
        nash = unregularised_nash(game.preference, game.support)
    else:
        nash = regularised_nash(game.preference, log_reference, beta, progress=True)
    run = None if rounds is None else _play(rounds, updates, log_start, log_reference, nash)
    if output is not None:
        _write(output, game, nash, run, arguments)
    _print_tables(game, nash, beta, run, type(algorithm).__name__)
    if not (worst := nash.exploitability.max().item()) <= _CERTIFIED:
        print(
            f"warning: the equilibrium is exact to an exploitability of {worst:.1e} only, "
            "and so is what is measured against it",
            file=sys.stderr,
        )


class _Parser(ArgumentParser):
    """A parser that refuses in one sentence, without the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with exit code 2."""
        # The options of the algorithm are parsed by a parser of their own.
        nested = "" if self.prog == _PROGRAM else "algorithm."
        self.exit(2, f"{_PROGRAM}: error: {_sentence(message, nested)}\n")


def _sentence(message: str, nested: str) -> str:
    """What jsonargparse says, in the words of someone who types options."""
    message = " ".join(message.split())
    key = re.match(r'Parser key "(\S+)": ', message)
    option = f"--{nested}{key[1]}: " if key else ""
    if name := re.search(r"Expected a dot import path string: (.*)", message):
        known = ", ".join(sorted(set(algorithms.__all__) - {"PolicyOptimizer"}))
        return f"{option}there is no algorithm {name[1]!r}, choose one of {known}"
    if "PolicyOptimizer is abstract" in message:
        return f"{option}name the algorithm whose options you give, as in --algorithm NashMP"
    kinds = re.findall(r"Expected an? <class '(\w+)'>", message)
    value = re.search(r"(?:Given|Got) value: (.*)", message)
    if kinds and value:
        expected = " or ".join(kinds).replace("NoneType", "null")
        return f"{option}expected {expected}, but got {value[1]!r}"
    return option + message.removeprefix(key[0] if key else "")


@dataclass(frozen=True, slots=True)
class _Game:
    """C games of at most N alternatives.

    Args:
        preference: P(y > y') [C, N, N].
        support: which alternatives exist, bool [C, N].
        names: of the alternatives, C lists.
        prompts: a title for each game, "" for one that needs none.
        where: the file.
    """

    preference: Tensor
    support: Tensor
    names: list[list[str]]
    prompts: list[str]
    where: Path


@dataclass(frozen=True, slots=True)
class _Run:
    """What an algorithm did.

    Args:
        log_policy: its last iterate [C, N].
        curves: metrics by name, [updates + 1, C] each.
        queries: cumulative, for each prompt, int [updates + 1].
    """

    log_policy: Tensor
    curves: dict[str, Tensor]
    queries: Tensor


def _check_combination(
    votes: Path | None, matrix: Path | None, prior: float | None, updates: int
) -> None:
    if (votes is None) == (matrix is None):
        raise UserError("give the game as either --votes or --matrix, exactly one of them")
    if prior is not None:
        if votes is None:
            raise UserError("--prior counts pseudo-ties of votes: give it with --votes only")
        if not (math.isfinite(prior) and prior >= 0):
            raise UserError(f"--prior must be a finite number, 0 or above, but it is {prior}")
    if updates < 0:
        raise UserError(f"--updates must be 0 or above, but it is {updates}")


def _check_algorithm(algorithm: PolicyOptimizer | None, start: Path | None, beta: float) -> None:
    if algorithm is None:
        if start is not None:
            raise UserError("--start is where an algorithm starts: give --algorithm too")
        return
    if beta == 0:
        raise UserError(
            "--beta 0 is solved by linear programme: leave --algorithm out, or give a higher --beta"
        )
    if not algorithm.closed_form:
        raise UserError(
            f"--algorithm {type(algorithm).__name__} has no closed form: train it with `nlhf fit`"
        )
    try:
        algorithm.steps(beta, 0)
    except ValueError as error:  # steps that it cannot take
        raise UserError(f"--algorithm: {error}") from error


def _check_output(output: Path | None, inputs: list[Path | None]) -> None:
    if output is None:
        return
    folder = output.parent
    if not folder.is_dir():
        raise UserError(f"--output {output}: the folder {folder} does not exist, create it first")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: give the name of a file in it")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output {output}: the folder {folder} cannot be written to")
    if any(path is not None and path.resolve() == output.resolve() for path in inputs):
        raise UserError(f"--output {output} would overwrite an input file: give another name")


def _read_game(votes: Path | None, matrix: Path | None, prior: float) -> _Game:
    if votes is not None:
        read = read_votes(votes, prior)
        return _Game(read.preference, read.support, read.names, read.prompts, votes)
    assert matrix is not None  # exactly one of them is given
    table = read_matrix(matrix)
    games, num, _ = table.preference.shape
    names = table.names or [str(action) for action in range(num)]
    prompts = [f"game {game}" for game in range(games)] if games > 1 else [""]
    support = torch.ones(games, num, dtype=torch.bool)
    return _Game(table.preference, support, [names] * games, prompts, matrix)


def _read_log_policy(path: Path | None, what: str, game: _Game) -> Tensor:
    """Log-probabilities [C, N], -inf for alternatives that do not exist; uniform without a file."""
    support = game.support
    if path is None:
        uniform = torch.zeros(support.shape, dtype=torch.float64)
        return uniform.masked_fill(~support, -torch.inf).log_softmax(-1)
    probability = read_distribution(path, what)
    games, num = support.shape
    if probability.shape not in [(num,), (games, num)]:
        raise UserError(
            f"{what} {path} has shape {[*probability.shape]}, but {game.where} has "
            f"{_shape(support)}: give one probability for each alternative"
        )
    if probability.dim() == 1 and any(own != game.names[0] for own in game.names):
        raise UserError(
            f"{what} {path} has shape {[num]}, but the prompts of {game.where} have alternatives "
            f"of their own: give {[games, num]}, a row for each prompt"
        )
    probability = probability.expand(games, num)
    for wrong, problem in [
        (
            (probability == 0) & support,
            "probability 0, so that it is never played: give a positive one",
        ),
        ((probability > 0) & ~support, "a probability, but its prompt has fewer: give 0"),
    ]:
        if wrong.any():
            prompt, action = wrong.nonzero()[0].tolist()
            own = game.names[prompt]
            name = f" ({_short(own[action])!r})" if action < len(own) else ""
            row = f" of row {prompt}" if games > 1 else ""
            raise UserError(f"{what} {path} gives alternative {action}{name}{row} {problem}")
    return probability.log()


def _play(
    rounds: ClosedFormRounds, updates: int, log_start: Tensor, log_reference: Tensor, nash: Solution
) -> _Run:
    """Play and measure in chunks, so that the memory does not grow with the number of updates.

    Raises:
        UserError: the algorithm left the floating-point numbers.
    """
    name = type(rounds.algorithm).__name__
    prepared = prepare_game(rounds.table, log_reference, rounds.beta, nash.log_policy)
    games, num = log_start.shape
    curves = {curve: torch.empty(updates + 1, games, dtype=torch.float64) for curve in _CURVES}
    queries = torch.zeros(updates + 1, dtype=torch.long)
    last = log_start

    def measure(first: int, log_policies: Tensor) -> None:
        metrics = prepared.measure(log_policies)
        for curve in _CURVES:
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
    return _Run(last.log_softmax(-1), curves, queries)


def _write(output: Path, game: _Game, nash: Solution, run: _Run | None, arguments: str) -> None:
    """Write the file beside its place and rename it, so that there is a whole file or none."""
    games, num = game.support.shape
    arrays: dict[str, Any] = {
        "log_policy": (nash if run is None else run).log_policy.numpy(),
        "nash_log_policy": nash.log_policy.numpy(),
        "nash_exploitability": nash.exploitability.numpy(),
        "names": np.array([own + [""] * (num - len(own)) for own in game.names]),
    }
    if games == 1:
        arrays = {name: array[0] for name, array in arrays.items()}
    if run is not None:
        curves = (
            run.curves if games > 1 else {name: curve[:, 0] for name, curve in run.curves.items()}
        )
        arrays |= {name: curve.numpy() for name, curve in curves.items()}
        arrays["queries"] = run.queries.numpy()
    arrays |= {"version": __version__, "arguments": arguments}
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(output)
    except OSError as error:
        raise UserError(f"--output {output} could not be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _print_tables(game: _Game, nash: Solution, beta: float, run: _Run | None, name: str) -> None:
    games = len(game.support)
    print(f"Nash equilibrium of {game.where}: {_shape(game.support)}, beta = {beta:g}")
    figures = {"equilibrium": {"exploitability": nash.exploitability}}
    columns = {"probability": nash.log_policy.exp()}
    columns["win rate"] = win_rates(game.preference, nash.log_policy)
    if run is not None:
        queries = run.queries[-1].item()
        print(f"{name}: {len(run.queries) - 1} updates, {queries} queries for each prompt")
        figures[name] = {title: run.curves[curve][-1] for curve, title in _CURVES.items()}
        columns[name] = run.log_policy.exp()
    for i, (prompt, names) in enumerate(zip(game.prompts, game.names, strict=True)):
        if i == _MOST_PROMPTS:
            print(f"\n{games - i} more prompts are not shown")
            break
        print("\n" + (f"{_short(prompt)}\n" if prompt else ""), end="")
        _print_alternatives(names, {title: column[i] for title, column in columns.items()})
        for who, values in figures.items():
            print(f"{who}: " + ", ".join(f"{what} {v[i]:.3g}" for what, v in values.items()))
    if games > 1:
        print(f"\nmean and maximum over {games} prompts")
        for who, values in figures.items():
            both = (f"{what} {v.mean():.3g} and {v.max():.3g}" for what, v in values.items())
            print(f"{who}: " + ", ".join(both))


def _print_alternatives(names: list[str], columns: dict[str, Tensor]) -> None:
    """A table of a prompt's alternatives, the most probable first.

    Args:
        names: of the alternatives.
        columns: by title; the alternatives that the prompt lacks stand at their end [N].
    """
    probability = columns["probability"][: len(names)]
    order = probability.sort(descending=True, stable=True).indices.tolist()
    shown, hidden = order[:_MOST_ALTERNATIVES], order[_MOST_ALTERNATIVES:]
    labels = [_short(names[action]) for action in shown]
    first = max(len("alternative"), *map(len, labels))
    width = {title: max(len("probability"), len(title)) for title in columns}
    print("  ".join(["alternative".ljust(first), *(t.rjust(width[t]) for t in columns)]))
    for action, label in zip(shown, labels, strict=True):
        cells = (f"{column[action]:{width[title]}.6f}" for title, column in columns.items())
        print("  ".join([label.ljust(first), *cells]))
    if hidden:
        print(
            f"{len(hidden)} more alternatives are not shown, "
            f"of probability {probability[hidden].sum():.3g} together"
        )


def _shape(support: Tensor) -> str:
    games, num = support.shape
    prompts = f"{games} prompts of " if games > 1 else ""
    fewest = "" if support.all() else "up to "
    return f"{prompts}{fewest}{num} alternatives"


def _short(text: str) -> str:
    """A name or a prompt on one line, and not too long a one."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 3] + "..."
