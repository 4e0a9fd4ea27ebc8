"""Checks of what users hand in: a sentence of refusal, or float64 tensors for the solvers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.errors import UserError

# P(a > b) + P(b > a) may miss 1 by this much, and probabilities may miss their sum by it: float32
# files do.
TOLERANCE = 1e-6


def check_preference(P: Any, where: str = "P") -> Tensor:  # anything that numpy understands
    """A preference matrix that obeys the law of the game, exactly.

    Args:
        P: [N, N], or [C, N, N] for several games; P[i, j] is the probability that i is preferred to
            j.
        where: what to call it in a message: a path, an option, a name.

    Returns:
        float64 tensor of the same shape. P(a > b) + P(b > a) = 1 within 1e-6 is asked for, and made
        exact: P <- 1/2 + (P - P^T) / 2.

    Raises:
        UserError: it is not such a matrix.
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
        *game, row, column = _position(miss.argmax(), P.shape)
        here, there = _index([*game, row, column]), _index([*game, column, row])
        raise UserError(
            f"{where} is not antisymmetric about 1/2: entry {here} is "
            f"{P[*game, row, column].item():.6g} and {there} is {P[*game, column, row].item():.6g}, "
            "but P(a > b) + P(b > a) must be 1 (and the diagonal 1/2) within "
            f"{TOLERANCE:g}; it misses by {worst:.3g}"
        )
    return (P - P.mT) / 2 + 0.5


def check_reference(mu: Any, num_actions: int, where: str = "mu") -> Tensor:
    """A reference policy that plays every action.

    Args:
        mu: probabilities [N], or [C, N] for several games.
        num_actions: N.
        where: what to call it in a message: a path, an option, a name.

    Returns:
        float64 tensor of the same shape, divided by its sum, which must be 1 within 1e-6.

    Raises:
        UserError: it is not such a policy.
    """
    mu = _as_tensor(mu, where)
    if mu.dim() not in (1, 2) or mu.shape[-1] != num_actions or mu.numel() == 0:
        raise UserError(
            f"{where} has shape {[*mu.shape]}, but the game has {num_actions} actions: "
            "give one probability for each"
        )
    _check_entries(mu, where)
    if (mu == 0).any():
        position = _index(_position((mu == 0).long().argmax(), mu.shape))
        raise UserError(
            f"{where} gives action {position} probability 0, but a policy that is regularised "
            "towards it could never play that action; give every action a positive probability"
        )
    total = mu.sum(-1)
    if (worst := (total - 1).abs()).max() > TOLERANCE:
        raise UserError(
            f"{where} must sum to 1 within {TOLERANCE:g}, "
            f"but it sums to {total.flatten()[worst.argmax()]:.8g}"
        )
    return mu / total[..., None]


def check_beta(beta: float, where: str = "beta") -> float:
    """A temperature: finite and >= 0.

    Args:
        beta: temperature of the game.
        where: what to call it in a message.

    Raises:
        UserError: it is not a temperature.
    """
    if (
        not isinstance(beta, int | float)
        or isinstance(beta, bool)
        or not math.isfinite(beta)
        or beta < 0
    ):
        raise UserError(f"{where} must be a finite number, 0 or above, but it is {beta!r}")
    return float(beta)


def _as_tensor(values: Any, where: str) -> Tensor:
    if isinstance(values, Tensor):
        values = (
            values.detach().cpu().numpy()
            if values.dtype != torch.bfloat16
            else values.detach().cpu().double().numpy()
        )
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise UserError(
            f"{where} is not a table of numbers: its rows have different lengths"
        ) from error
    if array.dtype.kind not in "buif":
        raise UserError(
            f"{where} is not a table of real numbers: it holds values of type {array.dtype}"
        )
    return torch.from_numpy(array.astype(np.float64))


def _check_entries(values: Tensor, where: str) -> None:
    wrong = ~((values >= 0) & (values <= 1))  # also catches nan
    if wrong.any():
        position = _position(wrong.long().argmax(), values.shape)
        raise UserError(
            f"{where}: entry {_index(position)} is {values[*position].item():.6g}, "
            "but probabilities are finite and lie in [0, 1]"
        )


def _position(flat: Tensor, shape: torch.Size) -> list[int]:
    return [int(i) for i in np.unravel_index(int(flat), tuple(shape))]


def _index(position: list[int]) -> str:
    """Position in numpy's own notation, counted from 0."""
    return f"[{', '.join(map(str, position))}]"
