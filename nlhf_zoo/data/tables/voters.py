r"""Voters of one prompt: what each said of pairs, and how often, for counts and for resamples.

Voters who said the same are one kind. With :math:`m_t` of kind t the wins and half the ties of y
against y' are :math:`\sum_t m_t W_t(y, y')`, linear in the multiplicities: those that were counted
give the votes, and those that are drawn give the votes of a resample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.data.tables.ballots import Ballot

_NUMBERS = 2**22  # that are held at once beside the result


class Voters(ABC):
    """The voters of one prompt.

    Args:
        count: how many voters there are of each kind, float64 [T].
        num: alternatives, N.
    """

    def __init__(self, count: Tensor, num: int) -> None:
        self.count, self.num = count, num

    @abstractmethod
    def wins(self, times: Tensor) -> Tensor:
        """Wins and half the ties of the row's alternative, float64 [R, N, N].

        Args:
            times: how often each kind of voter counts, float64 [R, T].
        """

    def resampled(self, number: int, rng: np.random.Generator) -> Tensor:
        """Multiplicities of as many voters as there are, drawn from them with replacement [R, T].

        Args:
            number: of resamples, R.
            rng: what draws.
        """
        count = self.count.numpy()
        drawn = rng.multinomial(round(count.sum()), count / count.sum(), size=number)
        return torch.from_numpy(drawn.astype(np.float64))


@final
class RankingVoters(Voters):
    """Voters who rank alternatives: each compares all pairs of those that it ranks.

    Args:
        ballots: of each kind, alternatives by rank.
        count: of each kind.
        num: alternatives.
    """

    def __init__(self, ballots: Sequence[Ballot], count: Sequence[float], num: int) -> None:
        super().__init__(torch.tensor(count, dtype=torch.float64), num)
        self.rank = torch.full((len(ballots), num), -1)  # of each alternative; -1 of one without
        for own, ballot in zip(self.rank, ballots, strict=True):
            for place, alternatives in enumerate(ballot):
                own[alternatives] = place

    @override
    def wins(self, times: Tensor) -> Tensor:
        total = torch.zeros(len(times), self.num**2, dtype=torch.float64)
        parts = zip(
            times.split(size := max(1, _NUMBERS // self.num**2), 1),
            self.rank.split(size),
            strict=True,
        )
        for part, rank in parts:
            above, below = rank[:, :, None], rank[:, None, :]
            said = (above < below).double() + 0.5 * (above == below)
            said *= (above >= 0) & (below >= 0)
            said.diagonal(dim1=1, dim2=2).zero_()
            total.addmm_(part, said.flatten(1))
        return total.view(-1, self.num, self.num)


@final
class PairVoters(Voters):
    """Voters who compare single pairs.

    Args:
        votes: how often it was said that the first alternative of a key wins, or that both tie. A
            key begins with who said it; where that is None, each vote is a voter's own.
        num: alternatives.
    """

    def __init__(self, votes: Mapping[tuple[str | None, int, int, bool], float], num: int) -> None:
        who = [voter if voter is not None else place for place, (voter, *_) in enumerate(votes)]
        number = {voter: place for place, voter in enumerate(dict.fromkeys(who))}
        voter = torch.tensor([number[one] for one in who])
        one, other = torch.tensor([key[1:3] for key in votes]).reshape(-1, 2).T
        tie = torch.tensor([key[3] for key in votes], dtype=torch.bool)
        weight = torch.tensor([*votes.values()], dtype=torch.float64)
        named = any(key[0] is not None for key in votes)
        count = torch.ones(len(number), dtype=torch.float64) if named else weight
        super().__init__(count, num)
        said = torch.where(tie, 0.5, 1.0).double() * (weight if named else 1)
        # Of a tie each of both has half a win.
        self.voter = torch.cat([voter, voter[tie]])
        self.pair = torch.cat([one * num + other, (other * num + one)[tie]])
        self.said = torch.cat([said, said[tie]])

    @override
    def wins(self, times: Tensor) -> Tensor:
        total = torch.zeros(self.num**2, len(times), dtype=torch.float64)
        by_kind = times.T.contiguous()
        size = max(1, _NUMBERS // len(times))
        for voter, pair, said in zip(
            self.voter.split(size), self.pair.split(size), self.said.split(size), strict=True
        ):
            total.index_add_(0, pair, by_kind[voter] * said[:, None])
        return total.T.reshape(-1, self.num, self.num)
