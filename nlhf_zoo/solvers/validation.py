"""Checks of what users hand in: a sentence of refusal, or float64 tensors for the solvers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.solvers.game import antisymmetric

# How far P(a > b) + P(b > a) and the sum of probabilities may miss 1: float32 files do.
TOLERANCE = 1e-6

LEAST_BETA = 1e-9  # of a game with regularisation; below, rounding hides what it does


def check_preference(P: Any, where: str = "P") -> Tensor:
    """A preference matrix that obeys the law of the game, exactly.

    Args:
        P: [N, N], or [C, N, N] for several games; P[i, j] is the probability that i is preferred to
            j.
        where: what to call it in a message: a path, an option, a name.

    Returns:
        float64 tensor of the same shape. P(a > b) + P(b > a) = 1 within 1e-6 is asked for, and made
        exact: P <- 1/2 + (P - P^T) / 2.

    Raises:
        UserError: it is not square, holds a number outside [0, 1], or P + P^T is not 1.
    """
    P = _as_tensor(P, where)
    if P.dim() not in (2, 3) or P.shape[-1] != P.shape[-2]:
        raise UserError(
            f"{where} has shape {[*P.shape]}, but a preference matrix is square: "
            "[N, N], or [C, N, N] for C games"
        )
    if P.numel() == 0:
        raise UserError(
            f"{where} has shape {[*P.shape]}: it is empty, give at least one game with one action"
        )
    _check_entries(P, where)
    miss = (P + P.mT - 1).abs()
    if (worst := miss.max().item()) > TOLERANCE:
        position = (miss == worst).nonzero()[0].tolist()
        raise UserError(_why_not_antisymmetric(P, position, where, worst))
    return torch.add(antisymmetric(P), 0.5)


def check_reference(mu: Any, num_actions: int, where: str = "mu") -> Tensor:
    """A reference policy that plays every action.

    Args:
        mu: probabilities [N], or [C, N] for several games.
        num_actions: N.
        where: what to call it in a message: a path, an option, a name.

    Returns:
        float64 tensor of the same shape, divided by its sum, which must be 1 within 1e-6.

    Raises:
        UserError: its length is another, a probability is not above 0, or the sum is not 1.
    """
    mu = _as_tensor(mu, where)
    if mu.dim() not in (1, 2) or mu.shape[-1] != num_actions or mu.numel() == 0:
        raise UserError(
            f"{where} has shape {[*mu.shape]}, but the game has {num_actions} actions: "
            "give one probability for each"
        )
    _check_entries(mu, where)
    if (mu == 0).any():
        raise UserError(
            f"{where} gives action {(mu == 0).nonzero()[0].tolist()} probability 0, but a policy "
            "that is regularised towards it could never play that action; give every action a "
            "positive probability"
        )
    total = mu.sum(-1)
    if (worst := (total - 1).abs()).max() > TOLERANCE:
        raise UserError(
            f"{where} must sum to 1 within {TOLERANCE:g}, "
            f"but it sums to {total.flatten()[worst.argmax()]:.8g}"
        )
    return torch.div(mu, total[..., None])


def check_beta(beta: float, where: str = "beta") -> float:
    """A temperature: finite, and 0 or at least `LEAST_BETA`.

    Args:
        beta: temperature of the game.
        where: what to call it in a message.
    """
    is_number = isinstance(beta, int | float) and not isinstance(beta, bool)
    if not (is_number and math.isfinite(beta) and beta >= 0):
        raise UserError(f"{where} must be a finite number, 0 or above, but it is {beta!r}")
    if 0 < beta < LEAST_BETA:
        raise UserError(
            f"{where} is {beta:g}, which rounding does not tell from 0: give 0, or "
            f"{LEAST_BETA:g} or more"
        )
    return float(beta)


def _why_not_antisymmetric(P: Tensor, position: list[int], where: str, worst: float) -> str:
    *game, row, column = position
    if row == column:
        return (
            f"{where}: diagonal entry {position} is {P[*position].item():.6g}, "
            "but an action against itself wins with probability 1/2"
        )
    mirrored = [*game, column, row]
    return (
        f"{where} is not antisymmetric about 1/2: entry {position} is "
        f"{P[*position].item():.6g} and {mirrored} is {P[*mirrored].item():.6g}, "
        f"but they must sum to 1 within {TOLERANCE:g} and miss it by {worst:.3g}"
    )


def _as_tensor(values: Any, where: str) -> Tensor:
    if isinstance(values, Tensor) and not values.is_complex():
        return values.detach().cpu().double()
    try:
        array = np.asarray(values)
    except ValueError as error:
        message = f"{where} is not a table of numbers: its rows have different lengths"
        raise UserError(message) from error
    if array.dtype.kind not in "uif":
        message = f"{where} is not a table of real numbers: it holds values of type {array.dtype}"
        raise UserError(message)
    return torch.from_numpy(array.astype(np.float64))


def _check_entries(values: Tensor, where: str) -> None:
    wrong = ~((values >= 0) & (values <= 1))  # also catches nan
    if wrong.any():
        position = wrong.nonzero()[0].tolist()
        raise UserError(
            f"{where}: entry {position} is {values[*position].item():.6g}, "
            "but probabilities are finite and lie in [0, 1]"
        )
