r"""How good a preference is: against labels, against itself in the other order, and its cycles.

Letters: M bins, N responses; "..." any batch shape. All functions compute in float64. A function of
pairs takes one number a pair in each tensor [...] and gives one figure a pair [...], or one of all
pairs []. A figure of a pair is NaN where the pair has no part in it, or one of its numbers is NaN;
`mean` leaves these out.

``probability`` is the predicted P(a > b), ``target`` a label, 1 or 0, or a probability. ``forward``
is P(a > b) as told with a first, ``backward`` P(b > a) as told with b first.

A pair has two orders, and nothing here depends on which of them is given: a preference
:math:`p = P(a > b)` with target t is the preference 1 - p with target 1 - t.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean(values: Tensor) -> Tensor:
    """Mean [] of those that are not NaN; NaN where all are, or there are none."""
    return values.double().nanmean()


def correct(probability: Tensor, target: Tensor) -> Tensor:
    """Whether the predicted winner is the winner, 1 or 0; the mean is the accuracy.

    The winner is on the side of 1/2 where the target lies. 1/2 where the prediction is a tie; NaN
    where the target is one.
    """
    predicted, won = probability.double() - 0.5, target.double() - 0.5
    right = 0.5 + 0.5 * predicted.sign() * won.sign()  # the sign of NaN is 0
    unknown = predicted.isnan() | won.isnan()
    return right.masked_fill(unknown | (won == 0), torch.nan)


def log_loss(probability: Tensor, target: Tensor) -> Tensor:
    r"""Cross-entropy in nats, :math:`- t \log p - (1 - t) \log (1 - p)`, with 0 log 0 = 0.

    Nothing is clipped: a certain prediction that is wrong costs infinitely much. For targets that
    are probabilities its least value is their entropy, not 0.
    """
    p, t = probability.double(), target.double()
    return -torch.xlogy(t, p) - torch.xlogy(1 - t, 1 - p)


def calibration_bins(probability: Tensor, target: Tensor, num_bins: int) -> Tensor:
    """Sums that the calibration error is made of: over pairs, by the confidence of a prediction.

    The confidence is max(p, 1 - p), in M bins of equal width over [1/2, 1], each with its upper
    end. This counts each pair in both orders in twice as many bins over [0, 1].

    Returns:
        number of pairs, sum of confidences, and sum of targets of the predicted winner [3, M];
        pairs with a NaN are left out.
    """
    p, t = probability.double().flatten(), target.double().flatten()
    known = ~(p.isnan() | t.isnan())
    p, t = p[known], t[known]
    confidence = torch.maximum(p, 1 - p)
    outcome = torch.where(p > 0.5, t, 1 - t)
    outcome = torch.where(p == 0.5, torch.full_like(t, 0.5), outcome)  # both are "the winner"
    inner = torch.linspace(0.5, 1, num_bins + 1, dtype=p.dtype, device=p.device)[1:-1]
    place = torch.bucketize(confidence, inner)
    sums = p.new_zeros(3, num_bins)
    return sums.index_add(1, place, torch.stack([torch.ones_like(p), confidence, outcome]))


def calibration_error(bins: Tensor) -> Tensor:
    r"""Expected calibration error of Guo et al. (2017, arXiv:1706.04599, eq. 3).

    .. math:: \sum_m \frac{|B_m|}{n} | acc(B_m) - conf(B_m) |

    The sums are those of `calibration_bins` [3, M]. NaN without pairs.
    """
    number, confidence, outcome = bins.unbind()
    return (outcome - confidence).abs().sum() / number.sum()


def asymmetry(forward: Tensor, backward: Tensor) -> Tensor:
    """P(a > b) + P(b > a) - 1: above 0 where a place at the front is preferred.

    The symmetry error is its absolute value.
    """
    return forward.double() + backward.double() - 1


def flipped(forward: Tensor, backward: Tensor) -> Tensor:
    """Whether the two orders of a pair have different winners, 1 or 0; the mean is the flip rate.

    A tie has no winner, and is no flip.
    """
    agreement = (forward.double() - 0.5) * (0.5 - backward.double())
    return (agreement < 0).double().masked_fill(agreement.isnan(), torch.nan)


def cyclic_triples(preference: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Triples of responses that beat each other in a circle, and all triples with winners.

    A triple counts where its three answers are valid and none is a tie. Of a beats b it is asked
    whether P(a > b) > P(b > a). No transitive preference has a cycle; of a random one a quarter of
    the triples are cycles.

    Args:
        preference: P [..., N, N].
        valid: bool [..., N, N], None for all; a pair is valid where both of its entries are.
    """
    beats = preference > preference.mT
    if valid is not None:
        beats = beats & valid & valid.mT
    won = beats.double()  # exact up to 2^53 triples
    decided = won + won.mT
    # Closed walks of three steps: a cycle has one from each of its ends; a set of three pairs has
    # two, one each way round.
    cycles = ((won @ won) * won.mT).sum((-2, -1)) / 3
    triples = ((decided @ decided) * decided).sum((-2, -1)) / 6
    return cycles, triples


def length_correlation(probability: Tensor, difference: Tensor) -> Tensor:
    r"""Pearson's correlation of P(a > b) with d, the ``difference``: length of a minus that of b.

    Each pair is counted in both orders, so both means are known:

    .. math:: \frac{\sum (p - 1/2) d}{\sqrt{\sum (p - 1/2)^2 \sum d^2}}

    Pairs with a NaN are left out. NaN where either does not vary.
    """
    known = ~(probability.isnan() | difference.isnan())
    p, d = probability[known].double() - 0.5, difference[known].double()
    return (p * d).sum() / (p.square().sum() * d.square().sum()).sqrt()


def agreement(probability: Tensor, other: Tensor) -> Tensor:
    """Whether two name the same winner, 1 or 0; the mean is their agreement.

    NaN where one names none.
    """
    product = (probability.double() - 0.5).sign() * (other.double() - 0.5).sign()
    return (product > 0).double().masked_fill(product.isnan() | (product == 0), torch.nan)
