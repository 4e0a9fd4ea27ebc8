"""Games that are read: matrices, and people's votes."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
from torch import Tensor

from nlhf_zoo.data.tables.files import Matrix, as_preference, read_matrix
from nlhf_zoo.data.tables.votes import read_votes
from nlhf_zoo.oracles.tables.base import DTYPES, Precision, TableOracle


@final
class MatrixOracle(TableOracle):
    """Preferences from a matrix: a .npy or .csv file, or an array.

    Args:
        matrix: P(y > y') [N, N] or [C, N, N]: path of a .npy or .csv file, array or tensor.
        dtype: precision of the answers.
    """

    def __init__(
        self, matrix: str | Path | np.ndarray | Tensor, dtype: Precision = "float64"
    ) -> None:
        read = (
            read_matrix(matrix)
            if isinstance(matrix, str | Path)
            else Matrix(as_preference(matrix, "the matrix"), None)
        )
        preference = read.preference.to(DTYPES[dtype])
        names = None if read.names is None else [read.names] * len(preference)
        super().__init__(preference, names=names)


@final
class VotesOracle(TableOracle):
    """Preferences from a table of votes, one game a prompt.

    Args:
        votes: path of a CSV with the columns winner, loser and, optionally, prompt, count and tie.
        prior: pseudo-ties added to each pair; with 0, a pair that nobody compared is refused.
        dtype: precision of the answers.
    """

    def __init__(self, votes: str | Path, prior: float = 1.0, dtype: Precision = "float64") -> None:
        read = read_votes(votes, prior)
        preference = read.preference.to(DTYPES[dtype])
        super().__init__(preference, read.support, read.names, read.prompts)
