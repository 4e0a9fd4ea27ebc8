"""The game that ``nlhf solve`` is given, and what is wrong with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nlhf_zoo.algorithms import PolicyOptimizer
from nlhf_zoo.algorithms.scaling import scaled_steps
from nlhf_zoo.data.tables.ballots import Unranked
from nlhf_zoo.data.tables.files import read_distribution, read_matrix
from nlhf_zoo.data.tables.votes import VoteFormat, Votes, read_votes
from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers.payoffs import BoundedPayoff, PayoffName, bounded_payoff

_MOST_CHARACTERS = 60  # of a name
_MOST_ALTERNATIVES = 30  # that are shown


@dataclass(frozen=True, slots=True)
class Game:
    """C games of at most N alternatives."""

    preference: Tensor  # P(y > y') [C, N, N], or what the game pays in its place
    support: Tensor  # which alternatives exist, bool [C, N]
    names: list[list[str]]  # of the alternatives, C lists
    prompts: list[str]  # a title for each game, "" for one that needs none
    where: Path  # the file
    shares: Tensor | None = None  # the reference where none is given [C, N]; uniform without
    votes: Votes | None = None  # of which it is the game

    @property
    def is_uniform(self) -> bool:
        """Whether the reference is uniform where none is given."""
        if self.shares is None:
            return True
        largest = self.shares.amax(-1, keepdim=True)
        return bool(((self.shares == largest) == self.support).all())


def check_combination(
    votes: Path | None,
    matrix: Path | None,
    responses: Path | None,
    prior: float | None,
    updates: int,
) -> None:
    """Refuse options that do not go together."""
    if [votes, matrix, responses].count(None) != 2:
        raise UserError("give the game as one of --votes, --matrix and --responses, exactly one")
    if prior is not None:
        if votes is None:
            raise UserError("--prior counts pseudo-ties of votes: give it with --votes only")
        if not (math.isfinite(prior) and prior >= 0):
            raise UserError(f"--prior must be a finite number, 0 or above, but it is {prior}")
    if updates < 0:
        raise UserError(f"--updates must be 0 or above, but it is {updates}")


def check_algorithm(algorithm: PolicyOptimizer | None, start: Path | None, beta: float) -> None:
    """Refuse an algorithm that cannot be played here, and a start without one."""
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


def check_steps(algorithm: PolicyOptimizer | None, beta: float, payoff_bound: float) -> None:
    """Refuse an algorithm that cannot take its steps at this temperature, as far as is known.

    Where the payoff has no bound of its own, it is known once the game is.
    """
    if algorithm is None:
        return
    if algorithm.by_score:
        raise UserError(
            f"--algorithm: {type(algorithm).__name__} takes scores of single responses, and votes "
            "or a matrix have none: choose an algorithm that takes preferences, as SPPO"
        )
    if math.isinf(payoff_bound):
        return
    try:
        scaled_steps(algorithm, beta, 0, payoff_bound)
    except ValueError as error:
        raise UserError(f"--algorithm: {error}") from error


def check_payoff(payoff: PayoffName, bound: float | None) -> BoundedPayoff:
    """The payoff of the game; refuses a bound that has no place."""
    if bound is not None and payoff != "log_odds":
        raise UserError(f"--bound cuts log-odds, and --payoff is {payoff}: leave it out")
    return bounded_payoff(payoff, bound)


def check_votes(votes: Path | None, shape: VoteFormat, unranked: Unranked) -> None:
    """Refuse options of votes where there are none."""
    if votes is None and (shape, unranked) != ("auto", "refuse"):
        raise UserError("--format and --unranked say how votes are read: give --votes")


def read_game(
    votes: Path | None,
    matrix: Path | None,
    prior: float,
    shape: VoteFormat = "auto",
    unranked: Unranked = "refuse",
) -> Game:
    """The game of a file of votes, or of a matrix."""
    if votes is not None:
        read = read_votes(votes, prior, shape, unranked)
        return Game(read.preference, read.support, read.names, read.prompts, votes, votes=read)
    assert matrix is not None  # exactly one of them is given
    table = read_matrix(matrix)
    games, num, _ = table.preference.shape
    names = table.names or [str(action) for action in range(num)]
    prompts = [f"game {game}" for game in range(games)] if games > 1 else [""]
    support = torch.ones(games, num, dtype=torch.bool)
    return Game(table.preference, support, [names] * games, prompts, matrix)


def read_log_policy(path: Path | None, what: str, game: Game) -> Tensor:
    """Log-probabilities [C, N], -inf for alternatives that do not exist.

    Without a file they are uniform, or the shares of answers that were drawn.
    """
    support = game.support
    if path is None and game.shares is not None:
        return game.shares.log()
    if path is None:
        uniform = torch.zeros(support.shape, dtype=torch.float64)
        return uniform.masked_fill(~support, -torch.inf).log_softmax(-1)
    probability = read_distribution(path, what)
    games, num = support.shape
    if probability.shape not in [(num,), (games, num)]:
        raise UserError(
            f"{what} {path} has shape {[*probability.shape]}, but {game.where} has "
            f"{shape(support)}: give one probability for each alternative"
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
            name = f" ({short(own[action])!r})" if action < len(own) else ""
            row = f" of row {prompt}" if games > 1 else ""
            raise UserError(f"{what} {path} gives alternative {action}{name}{row} {problem}")
    return probability.log()


def shape(support: Tensor) -> str:
    """How many prompts and alternatives there are, in words."""
    games, num = support.shape
    prompts = f"{games} prompts of " if games > 1 else ""
    fewest = "" if support.all() else "up to "
    return f"{prompts}{fewest}{num} alternatives"


def short(text: str, most: int = _MOST_CHARACTERS) -> str:
    """A name or a prompt on one line, and not too long a one."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def print_alternatives(names: list[str], columns: dict[str, Tensor]) -> None:
    """A table of a prompt's alternatives, the most probable first.

    The columns [N], by title, end with the alternatives that the prompt lacks.
    """
    probability = columns["probability"][: len(names)]
    order = probability.sort(descending=True, stable=True).indices.tolist()
    shown, hidden = order[:_MOST_ALTERNATIVES], order[_MOST_ALTERNATIVES:]
    labels = [short(names[action]) for action in shown]
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
