"""Condorcet winner, Smith set and cycles against enumeration of alternatives, sets and triples."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from nlhf_zoo.solvers import solve
from nlhf_zoo.solvers.majority import beats, condorcet_winners, cyclic_triples, smith_set


def games(count, num):
    """Tables [count, num, num] with many ties, and which alternatives exist."""
    rng = np.random.default_rng(num)
    upper = np.triu(rng.integers(-1, 2, (count, num, num)), 1)
    upper[::2][rng.random(upper[::2].shape) < 0.3] = 0
    support = rng.random((count, num)) < 0.8
    support[:, 0] = True
    table = 0.5 + (upper - upper.transpose(0, 2, 1)) / 10
    table[~(support[:, :, None] & support[:, None, :])] = 0.5
    return torch.tensor(table), torch.tensor(support)


def smallest_dominant(wins, exist):
    for size in range(1, len(exist) + 1):
        for inside in combinations(exist, size):
            if all(wins[i, j] for i in inside for j in exist if j not in inside):
                return set(inside)
    raise AssertionError


@pytest.mark.parametrize("num", [1, 2, 5, 6])
def test_against_enumeration(num):
    table, support = games(60, num)
    wins = beats(table)
    winners, smith = condorcet_winners(wins, support), smith_set(wins, support)
    for game in range(len(table)):
        exist = support[game].nonzero()[:, 0].tolist()
        own = wins[game]
        best = [i for i in exist if all(own[i, j] for j in exist if j != i)]
        assert winners[game].nonzero()[:, 0].tolist() == best
        assert set(smith[game].nonzero()[:, 0].tolist()) == smallest_dominant(own, exist)
        cycles = {
            (i, j, k)
            for i, j, k in permutations(range(num), 3)
            if i == min(i, j, k) and own[i, j] and own[j, k] and own[k, i]
        }
        count, listed = cyclic_triples(own)
        assert count == len(listed) == len(cycles)
        assert set(listed) == cycles
        assert cyclic_triples(own, 1) == (count, listed[:1])


def test_a_margin_of_rounding_is_a_tie():
    table = torch.tensor([[0.5, 0.5 + 5e-7], [0.5 - 5e-7, 0.5]], dtype=torch.float64)
    assert not beats(table).any()


@pytest.mark.parametrize("payoff", ["identity", "sign"])
def test_maximal_lotteries_play_in_the_smith_set(payoff):
    table, _ = games(20, 6)
    smith = smith_set(beats(table), torch.ones(20, 6, dtype=torch.bool))
    assert (solve(table, beta=0, payoff=payoff).log_policy.exp()[~smith] == 0).all()
