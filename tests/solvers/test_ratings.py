"""Ratings of entrants against closed forms, independent fits and what must not change them."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest

from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers.length_control import length_control
from nlhf_zoo.solvers.nash_average import clone_effect, nash_average
from nlhf_zoo.solvers.ratings import (
    bradley_terry,
    bradley_terry_interval,
    elo,
    pair_win_rates,
    percentile_interval,
    resampled_wins,
    total_wins,
    unbeaten,
    wilson_interval,
    with_clone,
)


def judged(P, prompts: int, seed: int, share: float = 1.0):
    """Wins and losses [C, N, N] by P, of a share of the comparisons; the rest is NaN."""
    rng, num = np.random.default_rng(seed), len(P)
    first, second = np.triu_indices(num, 1)
    table = np.full((prompts, num, num), np.nan)
    won = (rng.random((prompts, len(first))) < P[first, second]).astype(float)
    won[rng.random(won.shape) >= share] = np.nan
    table[:, first, second], table[:, second, first] = won, 1 - won
    return table


def of_strengths(strengths):
    return 1 / (1 + np.exp(-(strengths[:, None] - strengths[None])))


PAPER_FIRST = np.array([[0.5, 0.7, 0.2], [0.3, 0.5, 0.9], [0.8, 0.1, 0.5]])  # a cycle of three


def test_wins_are_sums_and_every_pseudo_tie_is_half_a_win_for_each():
    table = np.full((3, 2, 2), np.nan)
    table[:, 0, 1] = [1.0, 0.5, 0.25]
    table[:, 1, 0] = 1 - table[:, 0, 1]
    wins = total_wins(table)
    assert wins.tolist() == [[0, 1.75], [1.25, 0]]
    assert pair_win_rates(wins, 1.0)[0, 1] == (1.75 + 0.5) / 4
    empty = pair_win_rates(np.zeros((2, 2)))
    assert np.isnan(empty[0, 1])
    assert pair_win_rates(np.zeros((2, 2)), 1.0)[0, 1] == 0.5
    again = resampled_wins(table, 200, seed=1)
    np.testing.assert_allclose(again[:, 0, 1] + again[:, 1, 0], 3)
    assert {0.75, 3.0} & {*again[:, 0, 1]}  # one prompt three times


def test_wilson_is_scipys():
    for won, num in [(0, 5), (3, 10), (10, 10)]:
        low, high = wilson_interval(np.array(float(won)), np.array(float(num)))
        other = binomtest(won, num).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose([low, high], [other.low, other.high], atol=1e-12)
    assert [float(end) for end in wilson_interval(np.zeros(()), np.zeros(()))] == [0, 1]


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_bradley_terry_is_the_optimum_of_its_likelihood(prior: float):
    wins = total_wins(judged(of_strengths(np.array([0.8, 0.3, 0.0, -1.0])), 40, seed=3, share=0.7))

    def loss(ratings):
        counts = wins + prior / 2
        np.fill_diagonal(counts, 0)
        return (counts * np.logaddexp(0, ratings[None] - ratings[:, None])).sum()

    found = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-7}).x
    ratings = bradley_terry(wins, prior)
    np.testing.assert_allclose(ratings, found - found.mean(), atol=1e-5)
    start = bradley_terry(wins, prior, start=ratings + 3.0)
    np.testing.assert_allclose(start, ratings, atol=1e-7)


def test_an_undefeated_entrant_has_a_rating_by_the_prior_and_none_without():
    wins = np.array([[0, 20, 20], [0, 0, 12], [0, 8, 0.0]])
    assert unbeaten(wins) == [0]
    assert unbeaten(wins, prior=1.0) == []
    assert unbeaten(np.array([[0, 0, 3], [0, 0, 3], [0, 0, 0.0]])) in ([0], [1])  # who never met
    with pytest.raises(UserError, match="no finite ratings without a prior"):
        bradley_terry(wins, prior=0.0)
    table = np.full((20, 2, 2), np.nan)
    table[:, 0, 1], table[:, 1, 0] = 1.0, 0.0
    both = total_wins(table)
    ratings = bradley_terry(both, 1.0)
    np.testing.assert_allclose(ratings, np.log(41) / 2 * np.array([1, -1]), atol=1e-6)
    # All resamples are alike; the interval is not of width 0 for that.
    low, high = bradley_terry_interval(both, resampled_wins(table, 50), 1.0)
    sd = np.sqrt(1 / (21 * (20.5 / 21) * (0.5 / 21))) / 2
    np.testing.assert_allclose(high - low, 2 * 1.959963984540054 * sd, rtol=1e-4)


def test_resamples_without_a_finite_rating_have_no_end():
    table = np.full((12, 2, 2), np.nan)
    table[:, 0, 1] = [0.0, *[1.0] * 11]  # a third of the resamples lacks the first prompt
    table[:, 1, 0] = 1 - table[:, 0, 1]
    low, high = bradley_terry_interval(total_wins(table), resampled_wins(table, 100), prior=0.0)
    assert np.isinf(low).all()
    assert np.isinf(high).all()


@pytest.mark.slow
def test_the_interval_of_ratings_holds_the_truth_at_its_level():
    """Of 4 x 100 intervals, dependent by fours: less than 88 % has a chance below 1e-3."""
    strengths = np.array([0.6, 0.2, -0.1, -0.7])
    inside = 0
    for seed in range(100):
        table = judged(of_strengths(strengths), 60, seed)
        low, high = bradley_terry_interval(total_wins(table), resampled_wins(table, 60), 1.0)
        inside += int(((low <= strengths) & (strengths <= high)).sum())
    assert inside >= 0.88 * 400


def test_elo_is_where_the_expected_update_is_zero():
    wins = total_wins(judged(of_strengths(np.array([1.0, 0.2, 0.0, -0.9])), 30, seed=5, share=0.6))
    wins[0, 3] = wins[3, 0] = 0  # they have not met
    ratings = elo(wins, prior=1.0)
    expected = 1 / (1 + 10 ** ((ratings[None] - ratings[:, None]) / 400))
    met = wins + wins.T > 0
    update = np.where(met, pair_win_rates(wins, 1.0) - expected, 0).sum(1)
    np.testing.assert_allclose(update, 0, atol=1e-7)
    assert ratings.mean() == pytest.approx(1000)
    assert np.isnan(elo(np.zeros((2, 2)))).all()


def test_elo_is_bradley_terry_where_all_meet_equally_often():
    wins = 50 * (PAPER_FIRST - np.eye(3) / 2)
    np.testing.assert_allclose(
        elo(wins, 1.0), 1000 + 400 / np.log(10) * bradley_terry(wins, 1.0), atol=1e-6
    )


def test_nash_average_of_a_cycle_and_its_certificate():
    average = nash_average(PAPER_FIRST)
    # Of three in a cycle each has the margin between the two others.
    margin = np.array([0.4, 0.3, 0.2])
    np.testing.assert_allclose(average.probability, margin / margin.sum(), atol=1e-9)
    assert average.exploitability < 1e-9
    assert average.unique
    np.testing.assert_array_equal(average.low, average.high)


def test_a_clone_leaves_the_nash_average_of_others_and_moves_elo():
    wins = 100 * (PAPER_FIRST - np.eye(3) / 2)
    for entrant in range(3):
        effect = clone_effect(wins, entrant, prior=1.0)
        assert effect.nash_average < 1e-9
        assert effect.elo > 10
    cloned = nash_average(pair_win_rates(with_clone(wins, 1, 100), 1.0))
    assert not cloned.unique
    whole = nash_average(pair_win_rates(wins, 1.0)).probability[1]
    np.testing.assert_allclose(cloned.probability[[1, 3]], whole / 2, atol=1e-9)
    np.testing.assert_allclose(cloned.low[[1, 3]], 0, atol=1e-9)
    np.testing.assert_allclose(cloned.high[[1, 3]], whole, atol=1e-9)
    np.testing.assert_allclose(cloned.low[[0, 2]], cloned.probability[[0, 2]], atol=1e-9)


def test_a_clone_in_random_cyclic_fields():
    """Over entrants, played or not."""
    for seed in range(2):
        P = np.random.default_rng(seed).random((5, 5))
        wins = np.triu(100 * P, 1)
        wins += np.tril(100 - wins.T, -1)
        assert nash_average(pair_win_rates(wins, 1.0)).unique
        assert max(clone_effect(wins, entrant).nash_average for entrant in range(5)) < 1e-9


def test_equal_entrants_have_many_averages_and_the_nearest_to_uniform_is_given():
    average = nash_average(np.full((3, 3), 0.5))
    assert not average.unique
    np.testing.assert_allclose(average.probability, 1 / 3, atol=1e-9)
    np.testing.assert_allclose([average.low, average.high], [[0] * 3, [1] * 3], atol=1e-9)


def test_length_control_takes_the_taste_for_length_out():
    """Two of equal quality, one longer: it wins by its length, and not at equal length."""
    rng = np.random.default_rng(0)
    prompts = 4000
    lengths = rng.normal([[120.0, 80.0, 100.0]], 30.0, (prompts, 3))
    quality = np.array([0.0, 0.0, 1.0])
    i, j = np.triu_indices(3, 1)
    logit = quality[i] - quality[j] + 0.02 * (lengths[:, i] - lengths[:, j])
    won = (rng.random(logit.shape) < 1 / (1 + np.exp(-logit))).astype(float)
    table = np.full((prompts, 3, 3), np.nan)
    table[:, i, j], table[:, j, i] = won, 1 - won
    fit = length_control(table, lengths)
    assert np.nanmean(table[:, 0, 1]) > 0.6
    # 4,000 comparisons: a standard error of .01 at most
    np.testing.assert_allclose(fit.rates, of_strengths(quality), atol=0.04)
    assert fit.slope / fit.scale == pytest.approx(0.02, rel=0.1)
    swapped = length_control(table[:, ::-1, ::-1], lengths[:, ::-1])
    np.testing.assert_allclose(swapped.rates[::-1, ::-1], fit.rates, atol=1e-6)


def test_length_control_of_equal_lengths_is_the_win_rate_and_of_separated_ones_needs_a_prior():
    table = judged(PAPER_FIRST, 50, seed=2)
    table[:, 0, 2] = table[:, 2, 0] = np.nan
    fit = length_control(table, np.ones((50, 3)))
    raw = pair_win_rates(total_wins(table), 1.0)
    raw[0, 2] = raw[2, 0] = np.nan
    np.testing.assert_allclose(fit.rates, raw, atol=1e-6)
    assert fit.slope == 0
    lengths = np.array([[2.0, 1.0], [1.0, 2.0]])
    longer = np.array([[[np.nan, 1.0], [0.0, np.nan]], [[np.nan, 0.0], [1.0, np.nan]]])
    assert np.isfinite(length_control(longer, lengths, prior=1.0).slope)
    assert np.isnan(length_control(longer, lengths, prior=0.0).slope)
    assert np.isnan(length_control(np.full((2, 2, 2), np.nan), lengths).slope)


def test_percentiles_leave_out_what_is_unknown():
    low, high = percentile_interval(np.array([[0.0, np.nan], [1.0, np.nan], [np.nan, np.nan]]))
    np.testing.assert_allclose([low[0], high[0]], [0.025, 0.975])
    assert np.isnan([low[1], high[1]]).all()
