"""Reading preference matrices and distributions from .npy and .csv files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nlhf_zoo.errors import UserError, cause
from nlhf_zoo.solvers.validation import check_preference

_PEAK = 6 * 8  # bytes a number: float64, held so often at most while it is read and checked


@dataclass(frozen=True, slots=True)
class Matrix:
    """A preference matrix from a file.

    Args:
        preference: P(y > y'), float64 [C, N, N].
        names: names of the N actions, None where the file has none.
    """

    preference: Tensor
    names: list[str] | None


def read_matrix(path: str | Path) -> Matrix:
    """Read a preference matrix, [N, N] or [C, N, N].

    Args:
        path: a .npy file, or a .csv file of one game: N rows of N numbers, with the names of the
            actions as an optional first row.

    Raises:
        UserError: the file cannot be read, or does not hold a preference.
    """
    values, names = _read(Path(path), "matrix")
    return Matrix(as_preference(values, str(path)), names)


def as_preference(values: NDArray[np.generic] | Tensor, where: str) -> Tensor:
    """A checked preference, [N, N] or [C, N, N], as float64 [C, N, N]; ``where`` is for errors.

    Raises:
        UserError: it is not square, holds a number outside [0, 1], or P + P^T is not 1.
    """
    if not isinstance(values, Tensor):
        values = torch.from_numpy(np.array(values, dtype=np.float64))
    preference = check_preference(values, where)
    return preference[None] if preference.dim() == 2 else preference


def read_distribution(path: str | Path, what: str) -> Tensor:
    """Read probabilities, float64 [N] for all games or [C, N] for each.

    They must sum to 1 within 1e-6; what rounding left is then divided out.

    Args:
        path: a .npy file, or a .csv file: one row of N numbers, N rows of one number, or C rows of
            N. A first row of names is allowed, but the order alone counts.
        what: "reference" or "start", for errors.

    Raises:
        UserError: the file cannot be read, or does not hold probabilities.
    """
    values = torch.from_numpy(_read(Path(path), what)[0])
    if values.dim() == 2 and Path(path).suffix == ".csv" and 1 in values.shape:
        values = values.flatten()  # a row or a column of a CSV is one distribution
    if values.dim() not in (1, 2) or values.numel() == 0:
        raise UserError(f"{what} {path} must be [N] or [C, N], but it is {[*values.shape]}")
    for row, probability in enumerate(values if values.dim() == 2 else values[None]):
        at = f" in row {row}" if values.dim() == 2 else ""
        if not torch.isfinite(probability).all():
            raise UserError(
                f"{what} {path} has an entry that is not finite{at}: give probabilities"
            )
        if (probability < 0).any():
            raise UserError(f"{what} {path} has a negative entry{at}: give probabilities")
        if abs(total := probability.sum().item() - 1) > 1e-6:
            raise UserError(
                f"{what} {path} sums to {total + 1:.9g}{at}: probabilities must sum to 1"
            )
    return values / values.sum(-1, keepdim=True)


def require_memory(num_bytes: int, where: str) -> None:
    """Refuse ``num_bytes``, held at once, that will not fit, before any of it is allocated."""
    if num_bytes > (available := _available_memory()):
        raise UserError(
            f"{where} will not fit in memory: it needs {num_bytes / 2**30:.3g} GiB "
            f"and {available / 2**30:.3g} GiB are available, so make it smaller"
        )


def read_rows(path: Path, what: str) -> Iterator[tuple[list[str], str]]:
    """The rows of a CSV file in UTF-8 that are not blank, each with its place for errors.

    The file may begin with the mark that spreadsheets put there.

    Raises:
        UserError: there is no such file, it is empty, or it is not CSV in UTF-8.
    """
    require_file(path, what)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            yield from ((row, f"line {reader.line_num} of {what} {path}") for row in reader if row)
        except csv.Error as error:
            raise UserError(
                f"line {reader.line_num} of {what} {path} is not CSV: {error}"
            ) from error
        except UnicodeDecodeError as error:
            raise UserError(f"{what} {path} is not text in UTF-8: save it as UTF-8") from error


def read_embeddings(path: str | Path) -> Tensor:
    """Read embeddings from a .npy file, [N, D], float32 where they are stored so, else float64.

    Raises:
        UserError: the file cannot be read, or does not hold finite embeddings.
    """
    path = Path(path)
    require_file(path, "embeddings")
    if path.suffix != ".npy":
        raise UserError(f"embeddings {path} must end in .npy")
    values = _read_npy(path, "embeddings")
    if values.ndim != 2 or values.shape[0] < 2:
        raise UserError(
            f"embeddings {path} must be [N, D], N at least 2, but are {[*values.shape]}"
        )
    vectors = torch.from_numpy(values.astype(np.result_type(values.dtype, np.float32)))
    if not torch.isfinite(vectors).all():
        raise UserError(f"embeddings {path} have an entry that is not finite")
    return vectors


def require_file(path: Path, what: str) -> None:
    """Refuse what is no file, is empty or cannot be read."""
    if not path.exists():
        raise UserError(f"{what} {path} does not exist: check the path")
    if not path.is_file():
        raise UserError(f"{what} {path} is not a file: check the path")
    if not os.access(path, os.R_OK):
        raise UserError(f"{what} {path} cannot be read: check its permissions")
    if path.stat().st_size == 0:
        raise UserError(f"{what} {path} is empty")


def _read(path: Path, what: str) -> tuple[NDArray[np.float64], list[str] | None]:
    """The float64 values of a file, and the names of its columns where it has some."""
    require_file(path, what)
    if path.suffix == ".npy":
        return _read_npy(path, what).astype(np.float64), None
    if path.suffix == ".csv":
        return _read_csv(path, what)
    raise UserError(f"{what} {path} must end in .npy or .csv")


def _read_npy(path: Path, what: str) -> NDArray[np.generic]:
    """The array of a .npy file, mapped: shape and kind are judged before anything is loaded."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        _refuse_large_header(path, what)
        raise UserError(
            f"{what} {path} is not a complete .npy file of numbers ({cause(error)}): "
            "save it with numpy.save, without Python objects"
        ) from error
    if not isinstance(values, np.ndarray):  # numpy reads .npz archives whatever their suffix
        values.close()
        raise UserError(f"{what} {path} is an archive of several arrays: save one with numpy.save")
    if values.dtype.kind not in "fiu":
        raise UserError(f"{what} {path} holds {values.dtype}, not real numbers: save it as float64")
    require_memory(_PEAK * values.size, f"{what} {path} {[*values.shape]}")
    return values


def _refuse_large_header(path: Path, what: str) -> None:
    """Say of a map that failed for its size that it is too large, rather than incomplete."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with path.open("rb") as file:
        try:
            shape, _, _ = readers[np.lib.format.read_magic(file)](file)
        except (ValueError, KeyError):
            return
    require_memory(_PEAK * prod(shape), f"{what} {path} {[*shape]}")


def _read_csv(path: Path, what: str) -> tuple[NDArray[np.float64], list[str] | None]:
    rows: list[list[float]] = []
    names: list[str] | None = None
    for row, at in read_rows(path, what):
        if not rows and names is None:
            if what == "matrix":
                require_memory(_PEAK * len(row) ** 2, f"{what} {path} {[len(row), len(row)]}")
            width = len(row)
            if not any(_is_number(field) for field in row):
                names = _names(row, at)
                continue
        if len(row) != width:
            raise UserError(f"{at} has {len(row)} fields, but the first line has {width}")
        rows.append(_numbers(row, at))
    if not rows:
        raise UserError(f"{what} {path} holds no numbers")
    return np.array(rows, dtype=np.float64), names


def _numbers(row: list[str], at: str) -> list[float]:
    for field in row:
        if not _is_number(field):
            raise UserError(f"{at} holds {field!r}, which is not a number")
    return [float(field) for field in row]


def _names(row: list[str], at: str) -> list[str]:
    for name in row:
        if not name.strip():
            raise UserError(f"{at} names the actions, and a name is empty")
        if row.count(name) > 1:
            raise UserError(f"{at} names {name!r} twice")
    return row


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _available_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux: all there is, in use or not
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
