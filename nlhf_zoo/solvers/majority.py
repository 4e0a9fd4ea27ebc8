r"""Who beats whom: the Condorcet winner, the Smith set and the cycles of a preference.

Letters: N alternatives; "..." any batch shape. An alternative beats another one where
:math:`P(y \succ y') > 1/2`; a margin of at most 1e-6 is a tie, as of `payoffs.sign`. All of it is
about wins alone, by whatever margin.

- The *Condorcet winner* beats every other alternative. There is at most one.
- The *Smith set* is the smallest set that is not empty and whose members beat all others (Smith
  1973). It is the Condorcet winner alone where there is one, and any maximal lottery, of margins or
  of majorities, plays in it only: an alternative outside loses to all of it.
- A *cyclic triple* is three alternatives of which a beats b, b beats c and c beats a.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nlhf_zoo.solvers.game import antisymmetric
from nlhf_zoo.solvers.payoffs import TIE


def beats(P: Tensor) -> Tensor:
    """Whether the row's alternative beats the column's, bool [..., N, N]."""
    return antisymmetric(P) > TIE


def condorcet_winners(wins: Tensor, support: Tensor) -> Tensor:
    """Which alternative is the Condorcet winner, bool [..., N]: one of them at most.

    Args:
        wins: whether the row's alternative beats the column's, bool [..., N, N].
        support: which alternatives exist, bool [..., N].
    """
    itself = torch.eye(wins.shape[-1], dtype=torch.bool, device=wins.device)
    return (wins | itself | ~support[..., None, :]).all(-1) & support


def smith_set(wins: Tensor, support: Tensor) -> Tensor:
    """Which alternatives are in the Smith set, bool [..., N].

    A member of a set that beats all of the others has a higher Copeland score, wins and half the
    ties, than any of those: the Smith set is the first of the beginnings of that order, shortest
    first, whose members beat all that comes behind.

    Args:
        wins: whether the row's alternative beats the column's, bool [..., N, N].
        support: which alternatives exist, bool [..., N].
    """
    num = wins.shape[-1]
    # Those that do not exist lose to all that do, and so come last.
    wins = wins | (support[..., :, None] & ~support[..., None, :])
    score = wins.sum(-1) - wins.sum(-2)  # the Copeland score up to a constant and a factor
    order = score.argsort(dim=-1, descending=True)
    rows = wins.gather(-2, order[..., :, None].expand(wins.shape))
    ordered = rows.gather(-1, order[..., None, :].expand(wins.shape)).long()
    within = ordered.cumsum(-1).cumsum(-2).diagonal(dim1=-2, dim2=-1)  # wins of the first k
    size = torch.arange(1, num + 1, device=wins.device)
    apart = ordered.sum(-1).cumsum(-1) - within == size * (num - size)
    first = apart.int().argmax(-1, keepdim=True)
    return torch.zeros_like(support).scatter(-1, order, size - 1 <= first)


def cyclic_triples(wins: Tensor, most: int | None = None) -> tuple[int, list[tuple[int, int, int]]]:
    """How many cyclic triples a game has, and the first of them, in the order of who beats whom.

    A triple is listed once, from its smallest place on.

    Args:
        wins: whether the row's alternative beats the column's, bool [N, N].
        most: how many are listed; all where None.
    """
    # The trace of the third power counts each cycle from each of its three places.
    number = wins.double()
    count = round(float((number @ number * number.mT).sum()) / 3)
    listed: list[tuple[int, int, int]] = []
    for first in range(len(wins)):
        if len(listed) == (count if most is None else min(most, count)):
            break
        later = torch.arange(len(wins), device=wins.device) > first
        second, third = (
            (wins & (wins[first] & later)[:, None] & (wins[:, first] & later)).nonzero().T.tolist()
        )
        listed += zip([first] * len(second), second, third, strict=True)
    return count, listed[:most]
