"""Metrics of preferences against counting by hand, in loops that share no code with them."""

import itertools
import math

import pytest
import torch

from nlhf_zoo.metrics.preference import (
    CalibrationError,
    FlipRate,
    PreferenceAccuracy,
    PreferenceLogLoss,
    SymmetryError,
)
from nlhf_zoo.solvers import preference as functions

# Predictions with ties and ends of bins among them, and labels, probabilities and ties to meet.
P = [0.9, 0.2, 0.5, 0.7, 0.0, 1.0, 0.6, 0.45, 0.3, 0.55, 0.8]
T = [1.0, 1.0, 1.0, 0.5, 0.0, 1.0, 0.3, 0.0, 0.9, 0.6, 0.0]


def pairs():
    return torch.tensor(P, dtype=torch.float64), torch.tensor(T, dtype=torch.float64)


def computed(cls, *given):
    """What a metric says of these pairs."""
    metric = cls()
    metric.update(*given)
    return metric.compute()


def random_preference(num, seed, ties=0.0):
    """P + P^T = 1 with some ties, and a symmetric mask of valid answers."""
    stream = torch.Generator().manual_seed(seed)
    upper = torch.rand(num, num, generator=stream, dtype=torch.float64)
    upper[torch.rand(num, num, generator=stream) < ties] = 0.5
    matrix = upper.triu(1) + (1 - upper.mT).tril(-1) + 0.5 * torch.eye(num)
    hidden = (torch.rand(num, num, generator=stream) < 0.1).triu(1)
    return matrix, ~(hidden | hidden.mT)


# ---- against labels ------------------------------------------------------------------------------


def test_accuracy_counts_winners_and_half_a_tie():
    right = []
    for p, t in zip(P, T, strict=True):
        if t == 0.5:
            continue  # nobody won
        right.append(0.5 if p == 0.5 else float((p > 0.5) == (t > 0.5)))
    values = functions.correct(*pairs())
    assert values.isnan().tolist() == [t == 0.5 for t in T]
    assert functions.mean(values).item() == pytest.approx(sum(right) / len(right))
    assert functions.mean(values[3:4]).isnan()


def test_what_is_not_known_is_left_out():
    """NaN in either, anywhere, says what is said without that pair."""
    (p, t), nothing = pairs(), torch.tensor([math.nan]).double()
    longer = torch.cat([p, nothing, p[:1], nothing]), torch.cat([t, t[:1], nothing, nothing])
    for cls in (PreferenceAccuracy, PreferenceLogLoss, CalibrationError):
        assert computed(cls, p, t) == computed(cls, *longer), cls
    assert computed(PreferenceAccuracy, torch.tensor([math.nan] * 3 + [0.9]), torch.ones(4)) == 1
    for function in (functions.correct, functions.log_loss, functions.asymmetry, functions.flipped):
        assert function(*longer)[-3:].isnan().all(), function
    found = functions.length_correlation(*longer)
    assert found == functions.length_correlation(p, t)
    assert not found.isnan()
    assert functions.agreement(*longer)[-3:].isnan().all()


def test_log_loss_is_the_cross_entropy():
    for p, t in [(0.9, 1.0), (0.2, 1.0), (0.45, 0.0), (0.3, 0.9)]:
        expected = -t * math.log(p) - (1 - t) * math.log(1 - p)
        assert functions.log_loss(torch.tensor(p).double(), torch.tensor(t)).item() == (
            pytest.approx(expected, rel=1e-6)
        )
    certain = functions.log_loss(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0]))
    assert certain.tolist() == [0.0, 0.0, math.inf]  # wrong and certain: nothing is clipped


@pytest.mark.parametrize("num_bins", [1, 2, 5, 7])
def test_calibration_error_counts_both_orders_in_bins_of_equal_width(num_bins):
    edges = [place / (2 * num_bins) for place in range(2 * num_bins + 1)]
    bins = [[] for _ in range(2 * num_bins)]
    for p, t in zip(P, T, strict=True):
        for one, target in ((p, t), (1 - p, 1 - t)):
            # A bin above 1/2 has its upper end, and its mirror image below the lower one; 1/2 is
            # in both of the middle, in one order each.
            if one > 0.5 or (one == 0.5 and target is t):
                place = next(i for i in range(num_bins, 2 * num_bins) if one <= edges[i + 1])
            else:
                place = next(i for i in reversed(range(num_bins)) if one >= edges[i])
            bins[place].append((one, target))
            if p == 0.5:  # a tie predicts neither: both outcomes, half and half
                bins[place][-1] = (one, 0.5)
    total = sum(map(len, bins))
    expected = 0.0
    for held in filter(None, bins):
        gap = sum(target for _, target in held) - sum(one for one, _ in held)
        expected += abs(gap) / total
    found = functions.calibration_error(functions.calibration_bins(*pairs(), num_bins))
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_honest_and_of_boastful_predictions():
    stream = torch.Generator().manual_seed(0)
    p = torch.rand(200_000, generator=stream, dtype=torch.float64)
    label = (torch.rand(len(p), generator=stream, dtype=torch.float64) < p).double()

    def error(told):
        return functions.calibration_error(functions.calibration_bins(told, label, 10)).item()

    # Of ten bins with 20,000 labels each, the mean of ten |errors| of at most .0036 (one standard
    # deviation) exceeds .01 once in 10^10.
    assert error(p) < 0.01
    # Who is always certain is right with the confidence: max(p, 1 - p), 3/4 in the mean.
    assert error((p > 0.5).double()) == pytest.approx(0.25, abs=0.01)


# ---- against the other order ---------------------------------------------------------------------


def test_asymmetry_and_flips():
    forward = torch.tensor([0.9, 0.9, 0.4, 0.5, 0.8, math.nan, 0.3])
    backward = torch.tensor([0.1, 0.6, 0.3, 0.9, 0.5, 0.2, 0.7])
    error = functions.asymmetry(forward, backward)
    expected = torch.tensor([0.0, 0.5, -0.3, 0.4, 0.3, math.nan, 0.0]).double()
    torch.testing.assert_close(error, expected, equal_nan=True, atol=1e-6, rtol=0)
    # .9 and .6: whoever is first wins. .4 and .3: whoever is second does. A tie is no flip.
    flips = functions.flipped(forward, backward).tolist()
    assert flips[:5] == [0, 1, 1, 0, 0]
    assert math.isnan(flips[5])
    assert flips[6] == 0


# ---- cycles --------------------------------------------------------------------------------------


def counted(matrix, valid):
    cyclic = triples = 0
    for three in itertools.combinations(range(len(matrix)), 3):
        sides = list(itertools.permutations(three, 2))
        if all(valid[i, j] and matrix[i, j] != matrix[j, i] for i, j in sides):
            wins = sorted(sum(int(matrix[i, j] > matrix[j, i]) for j in three) for i in three)
            triples += 1
            cyclic += wins == [1, 1, 1]
    return cyclic, triples


def test_cyclic_triples_are_those_that_are_counted_one_by_one():
    games = [random_preference(9, seed, ties=0.1) for seed in range(5)]
    found = functions.cyclic_triples(*(torch.stack(part) for part in zip(*games, strict=True)))
    expected = [counted(*game) for game in games]
    assert [*zip(*(part.tolist() for part in found), strict=True)] == expected
    assert all(0 < cyclic < triples < 84 for cyclic, triples in expected)


def test_cyclic_triples_of_a_tournament_follow_from_its_scores():
    matrix, _ = random_preference(40, 7)
    wins = (matrix > 0.5).sum(-1).tolist()
    cyclic, triples = functions.cyclic_triples(matrix)
    assert triples == math.comb(40, 3)
    assert cyclic == math.comb(40, 3) - sum(math.comb(win, 2) for win in wins)


def test_rewards_have_no_cycle_and_rock_paper_scissors_is_one():
    reward = torch.randn(30, generator=torch.Generator().manual_seed(1))
    cyclic, triples = functions.cyclic_triples(torch.sigmoid(reward[:, None] - reward))
    assert (cyclic, triples) == (0, math.comb(30, 3))
    rock = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
    assert functions.cyclic_triples(rock) == pytest.approx((1, 1))


# ---- length, agreement ---------------------------------------------------------------------------


def test_length_correlation_is_pearsons_over_both_orders():
    p, _ = pairs()
    length = torch.tensor([3, -2, 0, 5, -9, 1, 1, 2, -4, 0, 7])
    both = torch.stack([torch.cat([p, 1 - p]), torch.cat([length, -length]).double()])
    expected = torch.corrcoef(both)[0, 1].item()
    assert functions.length_correlation(p, length).item() == pytest.approx(expected)
    turned = torch.tensor([1, -1] * 5 + [1])  # which order a pair is given in does not matter
    other = torch.where(turned > 0, p, 1 - p)
    assert functions.length_correlation(other, length * turned).item() == pytest.approx(expected)
    gone = torch.cat([p, torch.tensor([math.nan])])
    assert functions.length_correlation(gone, torch.cat([length, torch.tensor([100])])).item() == (
        pytest.approx(expected)
    )


def test_length_correlation_of_what_does_not_vary_is_none():
    p, _ = pairs()
    assert functions.length_correlation(p, torch.zeros(len(p))).isnan()
    assert functions.length_correlation(torch.full((3,), 0.5), torch.arange(3)).isnan()


def test_agreement_is_of_winners():
    one, other = (
        torch.tensor([0.9, 0.1, 0.5, math.nan, 0.6]),
        torch.tensor([0.6, 0.9, 0.9, 0.1, 0.6]),
    )
    values = functions.agreement(one, other)
    assert values.isnan().tolist() == [False, False, True, True, False]
    assert functions.mean(values).item() == pytest.approx(2 / 3)


# ---- the classes ---------------------------------------------------------------------------------


TARGET = pairs()[1]
AGAINST_LABELS = (TARGET * 0.8 + 0.1, TARGET), (TARGET * -0.8 + 0.9, TARGET)
BOTH_ORDERS = (TARGET, 1 - TARGET), (TARGET, TARGET)


@pytest.mark.parametrize(
    ("cls", "given"),
    [
        (PreferenceAccuracy, AGAINST_LABELS),
        (PreferenceLogLoss, AGAINST_LABELS),
        (CalibrationError, AGAINST_LABELS),
        (FlipRate, BOTH_ORDERS),
        (SymmetryError, BOTH_ORDERS),
    ],
)
def test_what_is_declared_to_be_better_is_better(cls, given):
    good, bad = (computed(cls, *one) for one in given)
    if cls is SymmetryError:
        good, bad = good["mean"], bad["mean"]
    assert good != bad
    assert bool(good > bad) is cls.higher_is_better


def test_no_pairs_have_no_figure():
    for cls in (PreferenceAccuracy, CalibrationError, FlipRate):
        assert computed(cls, torch.zeros(0), torch.zeros(0)).isnan()
    metric = SymmetryError()
    metric.update(torch.zeros(0), torch.zeros(0))
    metric.update(torch.tensor([math.nan]), torch.tensor([0.5]))
    assert all(value.isnan() for value in metric.compute().values())
