"""What votes say of pairs, and whether they are enough."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlhf_zoo.people import Tally


def preference(tally: Tally) -> float:
    r"""P(first > second) of the votes of a pair.

    .. math:: P(y \succ y') = \frac{v + n / 2}{v + v' + n}

    of v votes for y, v' for y' and n that see no difference. Who skips a pair says nothing of it:
    NaN where all did.
    """
    return (tally.first + tally.neither / 2) / tally.votes if tally.votes else math.nan


def answered(tallies: Sequence[Tally], votes: int, people: int) -> list[bool]:
    """Which pairs have their votes.

    A pair that somebody skipped is open to the others. Where all that is left has been seen by
    everyone who takes part, nobody is waited for.

    Args:
        tallies: of pairs that are waited for.
        votes: that are wanted of each.
        people: that have voted so far.
    """
    complete = [tally.votes >= votes for tally in tallies]
    left = [tally for tally, done in zip(tallies, complete, strict=True) if not done]
    seen = [tally.skipped > 0 and tally.votes + tally.skipped >= people for tally in left]
    return [True] * len(tallies) if all(seen) else complete
