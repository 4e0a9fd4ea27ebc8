"""A checksum of weights: exact, and as cheap as reading them a few times."""

from __future__ import annotations

import torch
from torch import Tensor

_COLUMNS = 1024  # of the matrix of integers that a tensor's bytes are read as
_ROW = 8 * _COLUMNS  # bytes
_ROWS = 4096  # that are looked at in one go
_SPREAD = 0x1E3779B97F4A7C15  # odd, and far from a power of two
_SHIFT = 29  # no distance between the signs of two entries, whatever their type


@torch.no_grad()
def checksum(tensor: Tensor) -> int:
    r"""A number in [0, 2^64) that tells the content of any tensor from every other in practice.

    The bytes are read as a matrix of integers w_ij of 64 bits, zeros behind their end, of which

    .. math:: \sum_{ij} (a_i + b_j) (w_{ij} \oplus \lfloor w_{ij} / 2^{29} \rfloor) \mod 2^{64}

    is computed, a_i odd and b_j even. Integers are summed without rounding, so that it depends
    neither on the device nor on the number of threads. A change of any one entry changes it.
    """
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    rest = len(data) % _ROW
    whole, last = data[: len(data) - rest], data.new_zeros(_ROW)
    last[:rest] = data[len(data) - rest :]
    if whole.storage_offset() % 8:  # where it lies it cannot be read as integers of eight bytes
        whole = whole.clone()
    row, total = 0, 0
    for part in (*whole.split(_ROWS * _ROW), last):
        total += _weighted_sum(part, row)
        row += len(part) // _ROW
    return total % 2**64


def _weighted_sum(data: Tensor, first_row: int) -> int:
    words = data.view(torch.int64).view(-1, _COLUMNS)
    # Of the highest bits alone, an even number of changes would cancel.
    words = words ^ ((words >> _SHIFT) & (2 ** (64 - _SHIFT) - 1))
    rows = torch.arange(first_row, first_row + len(words), device=words.device)
    columns = torch.arange(_COLUMNS, device=words.device)
    by_row = words.sum(1) * (2 * _SPREAD * rows + 1)  # products and sums wrap around
    by_column = words.sum(0) * (6 * _SPREAD * columns)
    return int(by_row.sum() + by_column.sum())
