"""Agreement: against a worked example, another form of it, and what it must be."""

import random
from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest

from nlhf_zoo.people import Vote, agreement, krippendorff_alpha

# K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), C: nominal data, any number of
# observers, missing data; 12 units by the four observers' values, alpha = 0.743.
WORKED = ["111", "2223", "3333", "3333", "2222", "1234", "4444", "1121", "2222", "555", "11", "3"]


def vote(question, person, choice, undone=None):
    return Vote(0, question, person, choice, None, 0.0, False, undone)


def test_alpha_of_the_worked_example():
    assert krippendorff_alpha(WORKED) == pytest.approx(0.743, abs=5e-4)


@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_that_of_the_matrix_of_coincidences(seed):
    """alpha = ((n - 1) sum_c o_cc - sum_c n_c (n_c - 1)) / (n (n - 1) - sum_c n_c (n_c - 1))."""
    draw = random.Random(seed)
    units = [[draw.choice("abc") for _ in range(draw.randint(1, 5))] for _ in range(40)]
    coincidences = Counter()
    for unit in units:
        for pair in permutations(unit, 2):
            coincidences[pair] += 1 / (len(unit) - 1)
    n = sum(coincidences.values())
    marginal = [sum(coincidences[one, other] for other in "abc") for one in "abc"]
    by_chance = sum(count * (count - 1) for count in marginal)
    observed = sum(coincidences[one, one] for one in "abc")
    expected = ((n - 1) * observed - by_chance) / (n * (n - 1) - by_chance)
    assert krippendorff_alpha(units) == pytest.approx(expected, abs=1e-12)


def test_alpha_where_there_is_nothing_to_compare():
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha(["a", "b"]) is None  # one vote each
    assert krippendorff_alpha(["aa", "aa"]) is None  # one kind alone
    assert krippendorff_alpha(["aa", "bb"]) == 1


def test_each_person_with_the_others():
    votes = [
        vote(1, "Ann", "first"),
        vote(1, "Bob", "first"),
        vote(1, "Cy", "second"),
        vote(2, "Ann", "neither"),
        vote(2, "Bob", "neither"),
        vote(3, "Ann", "first"),  # alone
        vote(4, "Ann", "first"),
        vote(4, "Cy", "second", undone=5.0),
        vote(4, "Bob", "skip"),
        vote(5, "Di", "first"),
    ]
    found = agreement(votes)
    assert found.questions == 2
    assert found.people == {"Ann": 0.75, "Bob": 0.75, "Cy": 0.0, "Di": None}
    both = [["first", "first", "second"], ["second", "second", "first"], *[["neither"] * 2] * 2]
    assert found.alpha == krippendorff_alpha(both)


def test_alpha_does_not_depend_on_which_response_the_file_has_first():
    """Of chosen and rejected responses nearly all votes are for the first."""
    differ = {3: "Bob", 8: "Ann"}  # on all other questions both have voted for the first
    votes = [
        vote(number, name, "second" if differ.get(number) == name else "first")
        for number in range(20)
        for name in ("Ann", "Bob")
    ]
    turned = {"first": "second", "second": "first"}
    other = [replace(one, choice=turned[one.choice]) if one.question % 2 else one for one in votes]
    found = agreement(votes).alpha
    assert found == pytest.approx(agreement(other).alpha)
    # 90% of 20 questions alike, where half would be by chance: 0.8, but for few votes.
    assert found == pytest.approx(1 - 0.1 * 79 / 40)
    assert agreement([vote(1, "Ann", "first"), vote(1, "Bob", "first")]).alpha == 1
