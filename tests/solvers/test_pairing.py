"""Pairs of a round."""

import numpy as np

from nlhf_zoo.solvers.pairing import (
    WINDOW,
    contending_pairs,
    intervals_part,
    next_pairs,
    round_pairs,
)


def test_neighbours_meet_and_of_these_those_who_met_least():
    ratings = np.array([0.0, 3.0, 1.0, 2.0])  # the order is 1, 3, 2, 0
    met = np.zeros((4, 4), int)
    assert next_pairs(ratings, met, 5) == [(1, 3), (0, 2)]
    met[1, 3] = met[3, 1] = 1
    assert next_pairs(ratings, met, 5) == [(1, 2), (0, 3)]
    assert WINDOW == 6


def test_the_far_do_not_meet_and_one_of_an_odd_number_pauses():
    num = 13
    met = np.zeros((num, num), int)
    for _ in range(60):
        pairs = next_pairs(-np.arange(num, dtype=float), met, 1000)
        assert len(pairs) == 6
        assert len({*sum(pairs, ())}) == 12
        for i, j in pairs:
            met[i, j] = met[j, i] = met[i, j] + 1
    far = np.subtract.outer(range(num), range(num)) > 2 * WINDOW - 1
    assert met[far].sum() == 0


def test_pairs_that_met_on_all_prompts_meet_no_more():
    met = np.full((3, 3), 2)
    assert next_pairs(np.zeros(3), met, 2) == []
    met[0, 2] = met[2, 0] = 1
    assert next_pairs(np.zeros(3), met, 2) == [(0, 2)]


def test_when_intervals_part():
    ratings = np.array([1.0, 3.0, 2.0])
    assert intervals_part(ratings, ratings - 0.4, ratings + 0.4)
    assert not intervals_part(ratings, ratings - 0.4, ratings + np.array([0.4, 0.4, 0.6]))


def test_contenders_are_those_of_the_cycle_and_the_least_met_of_them_meet():
    """Three in a cycle beat a fourth always; a fifth is beaten, but nobody knows it yet."""
    rates = np.full((5, 5), 0.5)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        rates[i, j], rates[j, i] = 0.8, 0.2
    rates[:3, 3], rates[3, :3] = 0.95, 0.05
    rates[:3, 4], rates[4, :3] = 0.6, 0.4
    average = np.array([1, 1, 1, 0, 0]) / 3
    met = np.full((5, 5), 100)
    met[4, :3] = met[:3, 4] = 2
    assert contending_pairs(rates, average, met, 1000) == [(0, 4), (1, 4)]
    met[4, :3] = met[:3, 4] = 400
    met[0, 2] = met[2, 0] = 50
    assert contending_pairs(rates, average, met, 1000) == [(0, 2), (0, 1)]
    assert contending_pairs(rates, average, met, 50) == []


def test_every_second_round_is_one_of_contenders():
    wins = np.array([[0.0, 8, 2], [2, 0, 8], [8, 2, 0]])
    met = np.full((3, 3), 10)
    met[0, 1] = met[1, 0] = 9
    ratings = np.array([3.0, 2.0, 1.0])
    assert round_pairs(0, ratings, wins, 1.0, met, 100) == [(0, 1)]
    met[0, 1] = met[1, 0] = 11
    assert round_pairs(1, ratings, wins, 1.0, met, 100) == [(0, 2)]
    assert round_pairs(1, ratings, wins, 1.0, met, 10) == []
