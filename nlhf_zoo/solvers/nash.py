"""One call for both games: arrays in, equilibrium and certificate out."""

from __future__ import annotations

from typing import Any

import torch

from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers.linear import unregularised_nash
from nlhf_zoo.solvers.regularised import regularised_nash
from nlhf_zoo.solvers.solution import Solution
from nlhf_zoo.solvers.validation import check_beta, check_preference, check_reference


def solve(P: Any, mu: Any = None, beta: float = 0.1, progress: bool = False) -> Solution:
    """The Nash equilibrium of a preference game, with its certificate.

    Args:
        P: preference [N, N] or [C, N, N], array or tensor; P[i, j] is the probability that i is
            preferred to j. P(a > b) + P(b > a) must be 1 within 1e-6, and is then made exactly 1.
        mu: probabilities of the reference policy [N] or [C, N], all above 0; uniform where None.
        beta: temperature of the regularisation towards ``mu``; 0 is the game without it, solved by
            linear programme.
        progress: whether a solution that takes longer than two seconds shows a progress bar.

    Returns:
        the equilibrium; look at its ``exploitability``.

    Raises:
        UserError: an argument does not describe a game.
    """
    table = check_preference(P, "P")
    beta = check_beta(beta, "beta")
    num = table.shape[-1]
    reference = torch.full((num,), 1 / num, dtype=torch.float64)
    if mu is not None:
        reference = check_reference(mu, num, "mu")
    if reference.dim() == 2 and reference.shape[:-1] != table.shape[:-2]:
        raise UserError(
            f"mu has shape {[*reference.shape]} and P {[*table.shape]}: "
            "give one reference, or one for each game"
        )
    if beta == 0:
        return unregularised_nash(table)
    return regularised_nash(table, reference.log(), beta, progress=progress)
