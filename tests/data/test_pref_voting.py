"""Votes and their lotteries against pref_voting, on elections that it draws itself.

It is an independent implementation, which keeps ballots as objects and finds lotteries by nashpy's
enumeration of corners; of several lotteries it draws one at random. Its import takes two seconds.
"""

import json
import random

import numpy as np
import pytest
import torch

from nlhf_zoo.data.tables.votes import read_votes
from nlhf_zoo.solvers import equilibrium_intervals, solve
from nlhf_zoo.solvers.majority import beats, condorcet_winners, smith_set

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def theirs():
    """Its modules."""
    for needed in ("pref_voting", "numba", "seaborn"):  # it imports the others undeclared
        pytest.importorskip(needed, reason="pip install -e '.[elections]'")
    from pref_voting import c1_methods, generate_profiles, probabilistic_methods

    return probabilistic_methods, c1_methods, generate_profiles


def ours(tmp_path, ballots, counts, unranked="refuse"):
    """The preference of ballots, each a list of ranks of candidates, without a prior."""
    names = sorted({name for ballot in ballots for rank in ballot for name in rank})
    rows = [
        {"ranking": [[str(name) for name in rank] for rank in ballot], "count": int(count)}
        for ballot, count in zip(ballots, counts, strict=True)
    ]
    path = tmp_path / "votes.json"
    path.write_text(json.dumps(rows))
    read = read_votes(path, prior=0.0, unranked=unranked)
    place = [read.names[0].index(str(name)) for name in names]
    return read.preference[0][place][:, place]


def of_profile(profile):
    """Ballots and counts of one of its profiles of linear orders."""
    rankings, counts = profile.rankings_counts
    return [[[int(c)] for c in ranking] for ranking in rankings], counts


def check(P, data, num, methods, c1):
    """Margins up to a factor, winner, Smith set, and lotteries of both kinds."""
    every = torch.ones(num, dtype=torch.bool)
    wins = beats(P)
    winner = condorcet_winners(wins, every).nonzero()[:, 0].tolist()
    assert winner == [c for c in [data.condorcet_winner()] if c is not None]
    assert smith_set(wins, every).nonzero()[:, 0].tolist() == sorted(c1.top_cycle(data))
    alone = []
    for payoff, method in (
        ("identity", methods.maximal_lottery),
        ("sign", methods.c1_maximal_lottery),
    ):
        found = solve(P, beta=0, payoff=payoff)
        lottery = np.array([method(data)[c] for c in range(num)])
        if found.unique:
            np.testing.assert_allclose(found.log_policy.exp(), lottery, rtol=0, atol=1e-9)
        else:  # theirs is a corner of the set
            paid = P - 0.5 if payoff == "identity" else 0.5 * (P - 0.5).sign()
            low, high = equilibrium_intervals(0.5 + paid, found, every)
            assert (low.numpy() <= lottery + 1e-9).all()
            assert (lottery <= high.numpy() + 1e-9).all()
        alone.append(bool(found.unique))
    return alone


@pytest.mark.parametrize("model", ["IC", "IAC", "URN-0.3", "MALLOWS-RELPHI-0.375"])
def test_elections_of_linear_orders(tmp_path, theirs, model):
    methods, c1, generate = theirs
    np.random.seed(4)
    random.seed(4)
    alone = []
    for voters in (7, 31, 30, 101):
        for num in (3, 5, 7):
            profile = generate.generate_profile(num, voters, probmod=model)
            P = ours(tmp_path, *of_profile(profile))
            np.testing.assert_allclose(
                2 * voters * (P - 0.5), np.array(profile.margin_matrix), rtol=0, atol=1e-9
            )
            alone += check(P, profile, num, methods, c1)
    assert sum(alone) > 12


@pytest.mark.parametrize("unranked", ["below", "uncompared"])
def test_elections_of_incomplete_ballots(tmp_path, theirs, unranked):
    """Where an alternative is not ranked, its margins say the same of who wins.

    Uncompared ones differ in size: a margin here is a share of those who compare a pair, and there
    a number of voters. Lotteries of margins are compared where all count all pairs.
    """
    methods, c1, generate = theirs
    np.random.seed(4)
    random.seed(4)
    compared = 0
    for _ in range(12):
        profile = generate.generate_truncated_profile(5, 41, max_num_ranked=4, probmod="RT")
        rankings, counts = profile.rankings_as_dicts_counts
        ballots = [
            [[c for c, at in rank.items() if at == place] for place in sorted({*rank.values()})]
            for rank in rankings
        ]
        if {c for ballot in ballots for rank in ballot for c in rank} != set(range(5)):
            continue
        if unranked == "below":
            profile.use_extended_strict_preference()
        else:
            profile.use_strict_preference()
        P = ours(tmp_path, ballots, counts, unranked)
        margins = np.array(profile.margin_matrix)
        np.testing.assert_array_equal(np.sign((P - 0.5).numpy().round(12)), np.sign(margins))
        if unranked == "below":
            np.testing.assert_allclose(2 * 41 * (P - 0.5), margins, rtol=0, atol=1e-9)
            check(P, profile, 5, methods, c1)
        compared += 1
    assert compared > 8
