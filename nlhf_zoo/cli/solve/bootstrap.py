"""``nlhf solve --bootstrap``: how much the equilibrium owes to who happened to vote.

The voters of each prompt are drawn anew, as many as there are and with replacement, and the game of
their votes is solved; the prompts are apart from each other. The interval of a probability lies
between percentiles of those of all resamples (Efron 1979).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nlhf_zoo.cli.solve.reading import Game
from nlhf_zoo.data.tables.votes import Votes
from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers.majority import beats, condorcet_winners, smith_set
from nlhf_zoo.solvers.many_games import equilibria
from nlhf_zoo.solvers.payoffs import BoundedPayoff

LEVEL, SEED = 0.95, 0
_FEW = 30  # voters of a prompt, fewer than which are too few for percentiles to be trusted
_MOST = 2.0**53  # voters of a prompt: a whole number above it may be another one
_NUMBERS = 2**21  # of the games that are solved at once


@dataclass(frozen=True, slots=True)
class Resampling:
    """What is drawn.

    Args:
        number: of resamples, R.
        level: share of the resamples that an interval holds.
        seed: of the draws.
    """

    number: int
    level: float
    seed: int


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What resamples of the voters say of C games of at most N alternatives.

    Where a prompt has fewer than two voters, all of it is NaN.

    Args:
        how: what was drawn.
        low: lower end of the interval of each alternative's probability, float64 [C, N].
        high: upper end.
        condorcet: share of the resamples in which it is the Condorcet winner [C, N].
        smith: share in which it is in the Smith set [C, N].
        played: share in which it has a probability above 0 [C, N].
        voters: how many there are, C numbers.
        unit: what was drawn, in words.
    """

    how: Resampling
    low: Tensor
    high: Tensor
    condorcet: Tensor
    smith: Tensor
    played: Tensor
    voters: list[int]
    unit: str


def check_bootstrap(
    number: int | None,
    level: float | None,
    seed: int | None,
    votes: Path | None,
    worst_case: list[Path] | None,
) -> Resampling | None:
    """What is to be drawn, None where nothing is; refuses what makes no sense."""
    if number is None:
        if (level, seed) != (None, None):
            raise UserError("--level and --seed are of --bootstrap: give it, too")
        return None
    if votes is None or worst_case is not None:
        raise UserError("--bootstrap draws voters anew: give it with --votes, and no --worst_case")
    level, seed = LEVEL if level is None else level, SEED if seed is None else seed
    if not 0 < level < 1:
        raise UserError(f"--level must lie between 0 and 1, but it is {level}")
    if seed < 0:
        raise UserError(f"--seed must be 0 or above, but it is {seed}")
    if number * (1 - level) < 2 - 1e-9:
        raise UserError(
            f"--bootstrap must be at least {np.ceil(2 / (1 - level) - 1e-9):.0f} for intervals of "
            f"{level:g}, which leave out resamples on both sides, but it is {number}"
        )
    return Resampling(number, level, seed)


def check_voters(game: Game, how: Resampling | None) -> None:
    """Refuse to draw from votes that are not so many voters."""
    if how is None:
        return
    where = game.where
    for voters in _votes_of(game).voters:
        if (broken := voters.count != voters.count.round()).any():
            raise UserError(
                f"--bootstrap draws voters, but in votes {where} some count "
                f"{voters.count[broken][0].item():g} times: give whole numbers, or name the voters"
            )
        if voters.count.sum() > _MOST:
            raise UserError(
                f"--bootstrap draws voters, but votes {where} have {voters.count.sum():g}"
            )


def _votes_of(game: Game) -> Votes:
    assert game.votes is not None  # `check_bootstrap` has seen to it
    return game.votes


def bootstrapped(
    game: Game, of_margin: BoundedPayoff, log_reference: Tensor, beta: float, how: Resampling | None
) -> Bootstrap | None:
    """Resample the voters of each prompt, and solve each game.

    Args:
        game: of votes.
        of_margin: the game's payoff.
        log_reference: log mu [C, N].
        beta: temperature.
        how: what is drawn; None gives none.

    Raises:
        UserError: a resample is no game, or rounding hides its lottery.
    """
    if how is None:
        return None
    votes = _votes_of(game)
    found = torch.full((5, *game.support.shape), torch.nan, dtype=torch.float64)
    found.masked_fill_(~game.support, 0.0)
    seeds = np.random.SeedSequence(how.seed).spawn(len(votes.voters))
    counts = [int(voters.count.sum()) for voters in votes.voters]
    with tqdm(
        total=how.number * len(counts), desc="bootstrap", delay=2, leave=False, file=sys.stderr
    ) as bar:
        for prompt, count in enumerate(counts):
            if count > 1:
                num, rng = len(votes.names[prompt]), np.random.default_rng(seeds[prompt])
                reference = log_reference[prompt, :num]
                parts = []
                size = max(1, _NUMBERS // max(num**2, len(votes.voters[prompt].count)))
                for begin in range(0, how.number, size):
                    many = min(size, how.number - begin)
                    preference = votes.resampled(prompt, votes.voters[prompt].resampled(many, rng))
                    parts.append(_of_resamples(preference, of_margin, reference, beta, game.where))
                    bar.update(many)
                found[:, prompt, :num] = _figures(torch.cat(parts, 1), how.level)
    low, high, condorcet, smith, played = found
    return Bootstrap(how, low, high, condorcet, smith, played, counts, votes.unit)


def _of_resamples(
    preference: Tensor, of_margin: BoundedPayoff, log_reference: Tensor, beta: float, where: Path
) -> Tensor:
    """Probability, Condorcet winner and Smith set of resamples [R, N, N], float64 [3, R, N]."""
    payoff = of_margin.of_table(preference, f"resamples of votes {where}")
    policy = equilibria(payoff, log_reference, beta).log_policy.exp()
    wins = beats(preference)
    exist = torch.ones_like(policy, dtype=torch.bool)
    return torch.stack(
        [policy, condorcet_winners(wins, exist).double(), smith_set(wins, exist).double()]
    )


def _figures(of_resamples: Tensor, level: float) -> Tensor:
    """Ends of the intervals and shares [5, N], from what is known of resamples [3, R, N]."""
    policy, condorcet, smith = of_resamples
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = torch.from_numpy(np.quantile(policy.numpy(), ends, axis=0))
    played = (policy > 0).double()
    return torch.stack([low, high, condorcet.mean(0), smith.mean(0), played.mean(0)])


def columns_of(found: Bootstrap, beta: float) -> dict[str, Tensor]:
    """Columns [C, N] of the printed table."""
    columns = {"low": found.low, "high": found.high, "Condorcet": found.condorcet}
    # At beta > 0 everything is played.
    return columns if beta else {**columns, "played": found.played}


def sentences(found: Bootstrap, number: int | None = None) -> list[str]:
    """What is to be said of all games together, or of one by its number."""
    how = found.how
    if number is None:
        said = [
            f"bootstrap: {how.number} resamples of the {found.unit} of each prompt, seed "
            f"{how.seed}; low and high are percentiles that hold {100 * how.level:g}% of them"
        ]
        if found.unit == "votes":
            said.append("no column names the voters: each vote is taken for another voter's")
        return said
    count = found.voters[number]
    if count < 2:
        unit = found.unit[:-1] if count else found.unit
        return [f"{count} {unit}: nothing to draw anew, and no interval"]
    few = f"only {count} {found.unit}: too few for intervals to be trusted"
    return [few] if count < _FEW else [f"{count} {found.unit}"]


def arrays_of(found: Bootstrap) -> dict[str, Any]:
    """What the output file holds, with a dimension of C games before all others."""
    return {
        "bootstrap_low": found.low.numpy(),
        "bootstrap_high": found.high.numpy(),
        "bootstrap_condorcet": found.condorcet.numpy(),
        "bootstrap_smith": found.smith.numpy(),
        "bootstrap_played": found.played.numpy(),
        "num_voters": np.array(found.voters),
    }
