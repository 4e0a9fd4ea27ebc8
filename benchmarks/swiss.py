"""What Swiss pairing with 40 % of a round robin's questions finds, against a second round robin.

    python -m benchmarks.swiss [--tournaments 100] [--seed 1000]

Twelve entrants, 100 prompts, yes and no answers. A full round robin is played, a second one that is
independent of it, and by the product's own rule a tournament that ends at 40 % of its questions.
Both are held against the first: Kendall's tau of the Bradley-Terry ratings and whether the winner
is the same; where preferences are cycles, whether the Nash average plays the same entrants. The
true ratings are normal with three spreads, in logits; where there are cycles, each entrant is of
one of three kinds, too, of which each beats the next by one logit. Nothing is timed.
"""

from __future__ import annotations

import argparse
from itertools import combinations, count

import numpy as np
from scipy.stats import kendalltau

from nlhf_zoo.solvers.nash_average import nash_average
from nlhf_zoo.solvers.pairing import opening_prompts, round_pairs, round_prompts
from nlhf_zoo.solvers.ratings import Array, bradley_terry, pair_win_rates

ENTRANTS, PROMPTS, SHARE = 12, 100, 0.4
SPREADS = (0.5, 1.0, 2.0)
PRIOR = 1.0
PAIRS = [*combinations(range(ENTRANTS), 2)]


class Field:
    """Win counts of entrants whose win rates are known."""

    def __init__(self, rates: Array, rng: np.random.Generator) -> None:
        self.rates, self.rng = rates, rng
        self.wins = np.zeros_like(rates)
        self.met = np.zeros(rates.shape, dtype=np.intp)

    def play(self, i: int, j: int, num: int) -> int:
        """Let two meet on so many prompts more; how many there were left."""
        num = min(num, PROMPTS - int(self.met[i, j]))
        won = self.rng.binomial(num, self.rates[i, j])
        self.wins[i, j] += won
        self.wins[j, i] += num - won
        self.met[i, j] += num
        self.met[j, i] += num
        return num


def round_robin(rates: Array, rng: np.random.Generator) -> Array:
    """Wins of all pairs on all prompts."""
    field = Field(rates, rng)
    for i, j in PAIRS:
        field.play(i, j, PROMPTS)
    return field.wins


def swiss(rates: Array, rng: np.random.Generator) -> Array:
    """Wins by the rule of `nlhf tournament --pairing swiss`, up to the share of the questions."""
    field, left = Field(rates, rng), int(SHARE * PROMPTS * len(PAIRS))
    for i, j in PAIRS:
        left -= field.play(i, j, opening_prompts(PROMPTS))
    for number in count():
        ratings = bradley_terry(field.wins, PRIOR)
        for i, j in round_pairs(number, ratings, field.wins, PRIOR, field.met, PROMPTS):
            left -= field.play(i, j, min(left, round_prompts(PROMPTS)))
        if left <= 0:
            break
    return field.wins


def support(wins: Array) -> frozenset[int]:
    """The entrants that the Nash average plays."""
    found = nash_average(pair_win_rates(wins, PRIOR)).probability
    return frozenset(np.flatnonzero(found > 0).tolist())


def true_rates(spread: float, cyclic: bool, rng: np.random.Generator) -> Array:
    """Win rates [N, N] of entrants that are drawn."""
    rating = rng.normal(0, spread, ENTRANTS)
    margin = rating[:, None] - rating
    if cyclic:
        kind = rng.permutation(np.arange(ENTRANTS) % 3)
        ahead = (kind[:, None] - kind) % 3
        margin = margin + np.where(ahead == 1, 1.0, np.where(ahead == 2, -1.0, 0.0))
    rates: Array = 1 / (1 + np.exp(-margin))
    return rates


def compared(first: Array, other: Array, cyclic: bool) -> tuple[float, float]:
    """Kendall's tau and whether the winner is the same; of cycles whether the support is, twice."""
    if cyclic:
        same = float(support(first) == support(other))
        return same, same
    one, two = bradley_terry(first, PRIOR), bradley_terry(other, PRIOR)
    return float(kendalltau(one, two)[0]), float(one.argmax() == two.argmax())


def main() -> None:
    """Print a line for each kind of field and spread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--tournaments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1000)
    given = parser.parse_args()
    print("| field | spread | figure | second round robin | Swiss, 40 % | target | met |")
    print("|---|---|---|---|---|---|---|")
    for cyclic in (False, True):
        for spread in SPREADS:
            second, at_forty = [], []
            for number in range(given.tournaments):
                rng = np.random.default_rng(given.seed + number)
                rates = true_rates(spread, cyclic, rng)
                first = round_robin(rates, rng)
                second.append(compared(first, round_robin(rates, rng), cyclic))
                at_forty.append(compared(first, swiss(rates, rng), cyclic))
            theirs, ours = np.mean(second, 0), np.mean(at_forty, 0)
            rows = [("same support", 1, 0.9 * theirs[1])]
            if not cyclic:
                rows = [("tau", 0, theirs[0] - 0.05), ("same winner", 1, 0.9 * theirs[1])]
            kind = "cyclic" if cyclic else "Bradley-Terry"
            for name, place, target in rows:
                met = "yes" if ours[place] >= target else "no"
                print(
                    f"| {kind} | {spread:g} | {name} | {theirs[place]:.3f} | {ours[place]:.3f} | "
                    f"{target:.3f} | {met} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
