r"""Payoffs of the game that are not the preference itself, after arXiv 2505.20627.

Letters: N actions; "..." any batch shape. With f odd and increasing the game of payoff

.. math:: \tfrac12 + f(P(y \succ y') - \tfrac12)

is symmetric as the preference game is: the payoffs of both players add up to 1, and 1/2 is a tie.
A payoff is no probability: it lies within max |f| = f(1/2) of 1/2, and so may leave [0, 1]. As f
keeps the sign, an action that beats every other one (a Condorcet winner) is the one equilibrium of
all these games at beta = 0. They differ where there is none, and at every beta above 0:

- identity: the margin P - 1/2. Its equilibria at beta = 0 are the maximal lotteries known as C2.
- sign: half the sign of the margin, who wins by whatever margin; C1.
- log-odds: log P / (1 - P), unbounded. Of a Bradley-Terry preference it is the difference of the
  rewards, so that the equilibrium is mu exp(reward / beta) / Z, the policy of RLHF.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError

# f: of margins P - 1/2 in [-1/2, 1/2], entry by entry, in any shape.
Payoff = Callable[[Tensor], Tensor]
PayoffName = Literal["identity", "sign", "log_odds"]
PREFERENCE_BOUND = 0.5  # largest distance from 1/2 of a payoff that is a preference

# A margin that is no larger is a tie: rounding in float32 does not tell it from one.
TIE = 1e-6
_GRID = 500  # margins above 0 at which a function is looked at
_ROUNDING = 1e-9  # relative to its largest value


def identity(margin: Tensor) -> Tensor:
    """The margin itself."""
    return margin


def sign(margin: Tensor) -> Tensor:
    """1/2 for a win and -1/2 for a loss; 0 for a tie, a margin of at most 1e-6."""
    return 0.5 * margin.sign() * (margin.abs() > TIE)


def log_odds(margin: Tensor) -> Tensor:
    """Log P / (1 - P); infinite where P is 0 or 1."""
    return 2 * (2 * margin).clamp(-1, 1).atanh()


_NAMED: dict[str, Payoff] = {"identity": identity, "sign": sign, "log_odds": log_odds}


@dataclass(frozen=True, slots=True)
class BoundedPayoff:
    """A payoff f whose values lie in [-bound, bound].

    Args:
        function: f, odd and increasing.
        bound: values beyond it are cut to it; infinite where f is, and nothing is cut.
    """

    function: Payoff
    bound: float

    def __call__(self, preference: Tensor) -> Tensor:
        """1/2 + f(P - 1/2) of preferences of any shape, in their precision."""
        value = self.function(preference - 0.5).clamp(-self.bound, self.bound)
        return 0.5 + value.to(preference.dtype)

    @property
    def is_linear(self) -> bool:
        """Whether the payoff of a mean is the mean of payoffs."""
        margin = torch.linspace(0, 0.5, _GRID + 1, dtype=torch.float64)
        value = self(0.5 + margin) - 0.5
        return _near(value, 2 * margin * value[-1])

    def change(self, distance: float) -> float:
        """The most that the payoff changes where a preference does by ``distance``."""
        if self.is_linear:
            return distance * 2 * self.bound
        margin = torch.linspace(-0.5, 0.5, 2 * _GRID + 1, dtype=torch.float64)
        return (self(0.5 + margin + distance) - self(0.5 + margin)).abs().max().item()

    def of_table(self, P: Tensor, where: str) -> Tensor:
        """The payoffs of a table of preferences [..., N, N].

        Args:
            P: the table.
            where: what to call it in a message.

        Raises:
            UserError: one of them is infinite.
        """
        payoff = self(P)
        if payoff.isinf().any():
            position = payoff.isinf().nonzero()[0].tolist()
            raise UserError(
                f"{where}: entry {position} is {P[*position].item():g}, whose payoff is infinite: "
                "give the payoff a bound"
            )
        return payoff


def bounded_payoff(payoff: PayoffName | Payoff, bound: float | None = None) -> BoundedPayoff:
    """A payoff by its name, or a function of one's own, after a look at it on a grid.

    Args:
        payoff: identity, sign, log_odds, or a function of margins that is odd and increasing.
        bound: the largest |f|; values beyond it are cut to it. None takes f(1/2), which is
            infinite of log_odds.

    Raises:
        UserError: the bound is none, or the function is not what it must be.
    """
    if bound is not None and not (math.isfinite(bound) and bound > 0):
        raise UserError(f"the bound of a payoff must be a finite number above 0, but it is {bound}")
    name: str
    if isinstance(payoff, str):
        if payoff not in _NAMED:
            names = ", ".join(get_args(PayoffName))
            raise UserError(f"a payoff is one of {names} or a function, not {payoff!r}")
        function, name = _NAMED[payoff], payoff
    else:
        function, name = payoff, getattr(payoff, "__name__", type(payoff).__name__)
    margin = torch.linspace(0, 0.5, _GRID + 1, dtype=torch.float64)
    value = _looked_at(function, name, margin)
    if bound is not None:
        value = value.clamp(-bound, bound)
    steps = value.diff()  # one to an infinite value is infinite, and none between two of them
    if (steps < -_ROUNDING * _scale(value)).any():
        place = margin[int(steps.nan_to_num(0).argmin())].item()
        raise UserError(f"the payoff {name} must not fall, but it does above a margin of {place:g}")
    if not (largest := value[-1].item()) > 0:
        raise UserError(f"the payoff {name} is 0 of every margin: there is no game")
    return BoundedPayoff(function, largest)


def _looked_at(function: Payoff, name: str, margin: Tensor) -> Tensor:
    """F of the margins, after a look at whether it is an odd function of each entry by itself."""
    try:
        value, mirrored = function(margin), function(-margin)
        part, flat = function(margin[: _GRID // 2]), function(margin[None, :, None])
    except Exception as error:
        raise UserError(f"the payoff {name} could not be computed: {error}") from error
    found = (value, mirrored, part, flat)
    shapes = [margin.shape, margin.shape, margin[: _GRID // 2].shape, (1, len(margin), 1)]
    if not all(
        isinstance(each, Tensor) and each.shape == shape
        for each, shape in zip(found, shapes, strict=True)
    ):
        raise UserError(f"the payoff {name} must give a tensor of the shape that it is given")
    if any(each.isnan().any() for each in found):
        raise UserError(f"the payoff {name} is no number at some margin between -1/2 and 1/2")
    value, mirrored, part, flat = (each.double() for each in found)
    if not (_near(part, value[: _GRID // 2]) and _near(flat.flatten(), value)):
        raise UserError(f"the payoff {name} of a margin must not depend on the other ones")
    if not _near(-mirrored, value):
        raise UserError(f"the payoff {name} must be odd, f(-d) = -f(d), but it is not")
    return value


def _near(one: Tensor, other: Tensor) -> bool:
    """Whether all entries are equal up to rounding; infinite ones exactly."""
    return torch.allclose(one, other, rtol=0, atol=_ROUNDING * _scale(other))


def _scale(values: Tensor) -> float:
    """The largest finite absolute value."""
    return values.masked_fill(values.isinf(), 0).abs().max().item()


def largest_payoff(P: Tensor) -> float:
    """The largest distance from 1/2 in a table of payoffs of any shape; at least 1/2."""
    return max(PREFERENCE_BOUND, (P.double() - 0.5).abs().max().item())
