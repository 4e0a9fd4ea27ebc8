"""One colour for each algorithm, in every figure: of commands, of runs and of the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias
from zlib import crc32

Dashes: TypeAlias = str | tuple[int, tuple[float, ...]]

_DASHES: tuple[Dashes, ...] = ("-", (0, (4, 4)), "-.", (0, (1, 1)))
# Colour and dashes of each class. The colours are Okabe and Ito's, which the colour-blind can tell
# apart, without their yellow, which is too pale for a line, and one of Paul Tol's. Of lines that
# coincide both can be seen where one is dashed: EGPO is Nash-MP where steps are exact, and a moving
# magnet is what it moves around until it moves.
_STYLES = {
    "NashMP": ("#0072B2", 0),
    "NashMD": ("#D55E00", 0),
    "EGPO": ("#009E73", 1),
    "SPPO": ("#CC79A7", 0),
    "OnlineDPO": ("#56B4E9", 0),
    "OnlineIPO": ("#E69F00", 0),
    "OptimisticMirrorDescent": ("#000000", 0),
    "MovingMagnet": ("#882255", 2),
    "PairwiseGRPO": ("#9C755F", 1),
    "IPOMD": ("#6A3D9A", 0),
    "NashEMA": ("#E15759", 1),
    "RSPO": ("#B07AA1", 0),
    "NashProx": ("#117733", 0),
    "DNO": ("#AA3377", 1),  # in closed form SPPO's line
    "REBEL": ("#DD8452", 0),
    "XPO": ("#44AA99", 0),
    "INPO": ("#CC6677", 1),
    "MNPO": ("#88CCEE", 0),
}
_OTHERS = ("#332288", "#999933", "#661100", "#AA4499")  # Paul Tol's, for classes of one's own
# Of what is no algorithm; Okabe and Ito's, too.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
# Of the lines of a mean and of the worst, in points.
MEAN_WIDTH, WORST_WIDTH = 2.0, 0.8
# Of preferences, from 0 by 1/2 to 1; ColorBrewer's, which the colour-blind can tell apart.
PREFERENCES = "PuOr"
RC: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}  # of every figure


def colour_of(algorithm: str) -> str:
    """The colour of an algorithm, by the name of its class and nothing else."""
    return _style(algorithm)[0]


def dashes_of(algorithms: Sequence[str]) -> list[Dashes]:
    """Line styles that tell lines of one colour apart, as of one algorithm with other options.

    Args:
        algorithms: the name of the class of each line, in the order of the legend.
    """
    before: Counter[str] = Counter()  # lines of a colour
    dashes = []
    for colour, first in map(_style, algorithms):
        dashes.append(_DASHES[(first + before[colour]) % len(_DASHES)])
        before[colour] += 1
    return dashes


def _style(algorithm: str) -> tuple[str, int]:
    return _STYLES.get(algorithm) or (_OTHERS[crc32(algorithm.encode()) % len(_OTHERS)], 1)
