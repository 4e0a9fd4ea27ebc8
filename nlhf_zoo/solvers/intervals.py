"""Intervals for means over prompts."""

from __future__ import annotations

import math


def score_interval(
    total: float, squares: float, number: int, level: float = 0.95, most: float = math.inf
) -> tuple[float, float]:
    r"""Interval for the mean of a figure in [0, 1], of n independent prompts.

    Wilson's score interval (1927) for a share of ñ yes and no answers,

    .. math:: \frac{m + z^2 / 2ñ \pm z \sqrt{m (1 - m) / ñ + z^2 / 4ñ^2}}{1 + z^2 / ñ}, \quad
              ñ = \frac{n \, m (1 - m)}{s^2},

    with m the mean and s^2 the variance between prompts, by which ñ answers have the standard error
    that n prompts have, and z Student's quantile of n - 1 degrees of freedom (Korn and Graubard,
    1998, have the same of surveys). In the middle it is Student's interval m ± z s / sqrt(n); near
    0 and 1 it stays within them. Where all prompts are 0, or all are 1, ñ is n.

    The variance between prompts holds that of the draws to each, so that the interval is for the
    mean over the law that prompts come from and over all draws.

    Args:
        total: sum of the figures.
        squares: sum of their squares.
        number: n.
        level: share of repetitions in which it holds the mean.
        most: largest ñ, as the number of judgements: a few prompts that happen to agree are not
            certain. Of probabilities it is infinite, for their spread is less than that of yes
            and no.

    Returns:
        the ends; NaN of fewer than two prompts, which say nothing of their variance.
    """
    from scipy.stats import t as student  # late: it takes long

    if number < 2:
        return math.nan, math.nan
    mean = total / number
    spread = max(mean * (1 - mean), 0.0)
    variance = max(squares / number - mean**2, 0.0) * number / (number - 1)
    effective = number * spread / variance if variance else math.inf
    if not spread:
        effective = number
    effective = min(effective, most)
    z = float(student.ppf((1 + level) / 2, number - 1))
    centre = mean + z**2 / (2 * effective)
    half = z * math.sqrt(spread / effective + z**2 / (4 * effective**2))
    scale = 1 + z**2 / effective
    return (centre - half) / scale, (centre + half) / scale
