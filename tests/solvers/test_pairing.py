"""Pairs of a round."""

import numpy as np

from nlhf_zoo.solvers.pairing import WINDOW, intervals_part, next_pairs


def test_neighbours_meet_and_of_these_those_who_met_least():
    ratings = np.array([0.0, 3.0, 1.0, 2.0])  # the order is 1, 3, 2, 0
    met = np.zeros((4, 4), int)
    assert next_pairs(ratings, met, 5) == [(1, 3), (0, 2)]
    met[1, 3] = met[3, 1] = 1
    assert next_pairs(ratings, met, 5) == [(1, 2), (0, 3)]
    assert WINDOW == 4


def test_the_far_do_not_meet_and_one_of_an_odd_number_pauses():
    num = 9
    met = np.zeros((num, num), int)
    for _ in range(60):
        pairs = next_pairs(-np.arange(num, dtype=float), met, 1000)
        assert len(pairs) == 4
        assert len({*sum(pairs, ())}) == 8
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
