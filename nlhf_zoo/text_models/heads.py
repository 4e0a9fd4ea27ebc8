"""What a preference model reads, how many outputs its network has, and what they say of a pair."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, final

from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.text_models.encoding import Reads
from nlhf_zoo.text_models.loading import Kind


class PreferenceHead(ABC):
    """Log-odds of P(first > second) from the outputs of a network, in training and in an oracle.

    Of a sequence classifier the head's weights are the output layer, of ``outputs`` rows. One that
    reads single responses is antisymmetric: swapping the two negates its log-odds.

    Args:
        temperature: divides the log-odds.
    """

    kind: ClassVar[Kind]
    reads: ClassVar[Reads]
    outputs: int
    # Names of the outputs that the model's configuration is to hold; None for numbers.
    labels: Mapping[int, str] | None = None

    def __init__(self, temperature: float) -> None:
        refuse_temperature(type(self).__name__, temperature)
        self.temperature = temperature

    @abstractmethod
    def log_odds(self, first: Tensor, second: Tensor) -> Tensor:
        """s, of P(first > second) = sigma(s).

        Args:
            first: outputs for the first responses [B, outputs]; of a head that reads pairs, those
                for the pairs.
            second: outputs for the second responses [B, outputs]; of a head that reads pairs, the
                same again.

        Returns:
            s [B].
        """

    def preference(self, first: Tensor, second: Tensor) -> Tensor:
        r"""P(first > second) in double precision [B]; NaN where an output is not finite.

        .. math:: P(y > y' | x) = \sigma(s)

        Args:
            first: outputs for the first responses [B, outputs], as in ``log_odds``.
            second: outputs for the second responses [B, outputs].
        """
        double = (side.double() for side in (first, second))
        finite = (side.masked_fill(~side.isfinite(), math.nan) for side in double)
        return self.log_odds(*finite).sigmoid()


@final
class BradleyTerryHead(PreferenceHead):
    r"""One reward a response: a transitive preference.

    .. math:: P(y > y' | x) = \sigma((r(x, y) - r(x, y')) / temperature)

    What is trained is a `RewardModelOracle`.

    Args:
        temperature: divides differences of rewards.
    """

    kind = "reward"
    reads = "response"
    outputs = 1

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(temperature)

    @override
    def log_odds(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second)[..., 0] / self.temperature


@final
class PairHead(PreferenceHead):
    r"""A cross-encoder: the network reads the prompt and both responses at once.

    .. math:: P(y > y' | x) = \sigma(z(x, y, y') / temperature)

    It can express any preference, and costs a pass for each pair and order: in training a pair is
    shown in an order that is drawn anew each time, and an oracle averages both. What is trained is
    a `PairModelOracle`.

    Args:
        outputs: 1 for z itself, 2 for z as the difference of two.
        temperature: divides z.
    """

    kind = "pair"
    reads = "pair"

    def __init__(self, outputs: Literal[1, 2] = 1, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        if outputs not in (1, 2):
            raise UserError(f"PairHead.outputs is 1 or 2, not {outputs}")
        self.outputs = outputs
        self.labels = {0: "first", 1: "second"} if outputs == 2 else None

    @override
    def log_odds(self, first: Tensor, second: Tensor) -> Tensor:
        logit = first[..., 0] if self.outputs == 1 else first[..., 0] - first[..., 1]
        return logit / self.temperature


@final
class GeneralPreferenceHead(PreferenceHead):
    r"""An embedding a response, in which preferences may go in a circle, arXiv:2410.02197.

    .. math:: P(y > y' | x) = \sigma(\langle R v(x, y), v(x, y') \rangle / temperature)

    with R of 2 x 2 blocks (0, -1; 1, 0) on its diagonal. Ours is without the paper's normalisation
    of v and its prompt-dependent scale of each block: v is free, so it has a scale of its own. What
    is trained is a `GeneralPreferenceModelOracle`.

    Args:
        dimension: 2k, of the embedding; each two of them can hold a cycle.
        temperature: divides the score.
    """

    kind = "general"
    reads = "response"

    def __init__(self, dimension: int = 8, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        if dimension < 2 or dimension % 2:
            raise UserError(
                f"GeneralPreferenceHead.dimension must be an even number of at least 2, not "
                f"{dimension}: the embedding is made of pairs of numbers"
            )
        self.outputs = dimension

    @override
    def log_odds(self, first: Tensor, second: Tensor) -> Tensor:
        return preference_score(first, second) / self.temperature


def preference_score(first: Tensor, second: Tensor) -> Tensor:
    r"""The block skew-symmetric form of two embeddings.

    .. math:: s(y > y') = \langle R v, v' \rangle
              = \sum_{i=1}^{k} (v_{2i-1} v'_{2i} - v_{2i} v'_{2i-1}), \quad
              R = diag(R_1, ..., R_1), R_1 = \begin{pmatrix} 0 & -1 \\ 1 & 0 \end{pmatrix}

    s(y' > y) = - s(y > y') to the last bit. With k blocks every skew-symmetric matrix of rank 2k is
    such a form, that of a cycle among three with k = 1 (arXiv:2410.02197). Leading dimensions of v
    and v' [..., 2k] broadcast, and s is [...].
    """
    one, other = first.unflatten(-1, (-1, 2)), second.unflatten(-1, (-1, 2))
    score: Tensor = (one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]).sum(-1)
    return score


def refuse_temperature(owner: str, temperature: float) -> None:
    """Refuse, in its owner's name, a temperature that is not finite or not above 0."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"{owner}.temperature must be a finite number above 0, not {temperature}")
