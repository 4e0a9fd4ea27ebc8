"""Games that are read: matrices, votes, and embeddings, for games too large for a matrix."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.data.tables.ballots import Unranked
from nlhf_zoo.data.tables.files import (
    Matrix,
    as_preference,
    read_embeddings,
    read_matrix,
    require_memory,
)
from nlhf_zoo.data.tables.votes import VoteFormat, read_votes
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.tables.base import DTYPES, Precision, TableOracle, all_valid
from nlhf_zoo.records import Comparison, Prompts, Responses
from nlhf_zoo.records.random_streams import run_seed


@final
class MatrixOracle(TableOracle):
    """Preferences from a matrix: a .npy or .csv file, or an array.

    Args:
        path: of a .npy or .csv file of P(y > y') [N, N] or [C, N, N]; in Python, an array or tensor
            may stand there.
        dtype: precision of the answers.
        matrix: the name of ``path`` in version 0.1.
    """

    former_names: ClassVar = {"matrix": "path"}

    def __init__(
        self,
        path: str | Path | np.ndarray | Tensor | None = None,
        dtype: Precision = "float64",
        matrix: str | Path | np.ndarray | Tensor | None = None,
    ) -> None:
        given = path if matrix is None else matrix
        if given is None or (path is not None and matrix is not None):
            raise _not_one_path("MatrixOracle", "matrix", given)
        read = (
            read_matrix(given)
            if isinstance(given, str | Path)
            else Matrix(as_preference(given, "the matrix"), None)
        )
        preference = read.preference.to(DTYPES[dtype])
        names = None if read.names is None else [read.names] * len(preference)
        super().__init__(preference, names=names)


@final
class VotesOracle(TableOracle):
    """Preferences from a table of votes, one game a prompt.

    Args:
        path: of votes, rankings or an arena's rows in CSV or JSON; or of ballots of PrefLib, .soc,
            .soi, .toc or .toi: what `nlhf solve --votes` reads.
        prior: pseudo-ties added to each pair; with 0, a pair that nobody compared is refused.
        dtype: precision of the answers.
        format: of CSV or JSON: votes, with winner and loser; arena, with model_a, model_b and
            winner; rankings, with ranking or rank1, rank2, ...; auto goes by the columns.
        unranked: what a ballot says of alternatives that it does not rank: refuse such a ballot;
            below (all that it ranks, and tied with each other); or uncompared.
        votes: the name of ``path`` in version 0.1.
    """

    former_names: ClassVar = {"votes": "path"}

    def __init__(
        self,
        path: str | Path | None = None,
        prior: float = 1.0,
        dtype: Precision = "float64",
        format: VoteFormat = "auto",  # the option's name
        unranked: Unranked = "refuse",
        votes: str | Path | None = None,
    ) -> None:
        given = path if votes is None else votes
        if given is None or (path is not None and votes is not None):
            raise _not_one_path("VotesOracle", "votes", given)
        read = read_votes(given, prior, format, unranked)
        preference = read.preference.to(DTYPES[dtype])
        super().__init__(preference, read.support, read.names, read.prompts)


@final
class EmbeddingOracle(PreferenceOracle):
    r"""The general preference model of arXiv:2410.02197, for one prompt and very many actions.

    .. math:: P(y > y') = \sigma(scale \; v_y^T R v_{y'}), \quad R = diag([[0, -1], [1, 0]], ...)

    The N x N matrix is never stored: sampled responses cost their own pairs alone, and a product
    with enumerated opponents goes in blocks of rows.

    Args:
        path: of a .npy file [N, D] with D even; None draws them.
        num_actions: N of drawn embeddings.
        dim: D of drawn embeddings, even; they are normal, scaled so that v^T R v' has variance 1.
        scale: multiplies v^T R v'.
        seed: of drawn embeddings; None takes the run's seed.
        dtype: precision of the answers.
        block_size: preferences of a block, at most (but a block has at least one row).
        embeddings: the name of ``path`` in version 0.1.
    """

    former_names: ClassVar = {"embeddings": "path"}
    tolerance = 1e-5  # v^T R v' and v'^T R v are summed in different orders

    embeddings: Tensor
    _support: Tensor

    def __init__(
        self,
        path: str | Path | None = None,
        num_actions: int = 1000,
        dim: int = 64,
        scale: float = 1.0,
        seed: int | None = None,
        dtype: Precision = "float64",
        block_size: int = 2**20,
        embeddings: str | Path | None = None,
    ) -> None:
        super().__init__()
        if path is not None and embeddings is not None:
            raise _not_one_path("EmbeddingOracle", "embeddings", path)
        path = path if embeddings is None else embeddings
        if not math.isfinite(scale):
            raise UserError(f"scale must be a finite number, but it is {scale}")
        if block_size < 1:
            raise UserError(f"block_size must be at least 1, but it is {block_size}")
        if path is None:
            vectors, where = _draw(num_actions, dim, run_seed(seed)), "dim"
        else:
            vectors, where = read_embeddings(path), f"dim of embeddings {path}"
        if vectors.shape[1] % 2:
            raise UserError(f"{where} must be even, but it is {vectors.shape[1]}")
        self.scale, self.block_size = scale, block_size
        support = torch.ones(1, len(vectors), dtype=torch.bool)
        self.register_buffer("embeddings", vectors.to(DTYPES[dtype]), persistent=False)
        self.register_buffer("_support", support, persistent=False)

    @property
    def num_prompts(self) -> int:
        """The number of prompts, C = 1."""
        return 1

    @property
    def num_actions(self) -> int:
        """The number of actions, N."""
        return len(self.embeddings)

    @property
    @override
    def support(self) -> Tensor:
        return self._support

    @override
    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        """Compare by the embeddings of these responses alone."""
        if prompts.ids.any():
            raise ValueError(f"an embedding oracle has one prompt, 0, not {prompts.ids.tolist()}")
        if first.enumerated and second.enumerated:
            num_bytes = 3 * self.embeddings.itemsize * len(prompts) * first.num * second.num
            require_memory(num_bytes, "the comparison of all pairs of actions")
        rows, columns = self._rotated(first.actions), self.embeddings[second.actions]
        preference = torch.sigmoid(rows @ columns.mT)
        return Comparison(preference, all_valid(preference))

    @override
    def expected(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> tuple[Tensor, Tensor]:
        """The product (P o)(y_k) [B, K]; with enumerated opponents in blocks of rows."""
        if not second.enumerated:
            return super().expected(prompts, first, second)
        product = self.embeddings.new_empty(first.actions.shape)
        num_rows = max(1, self.block_size // self.num_actions)
        for actions, weight, out in zip(
            first.actions, second.weight.to(product.dtype), product, strict=True
        ):
            for own, part in zip(actions.split(num_rows), out.split(num_rows), strict=True):
                torch.mv(torch.sigmoid_(self._rotated(own) @ self.embeddings.T), weight, out=part)
        return product, all_valid(product)

    def _rotated(self, actions: Tensor) -> Tensor:
        """Scale times R^T v of these actions, [..., D]: (v_1, v_2) becomes (v_2, -v_1)."""
        vectors = self.embeddings[actions] * self.scale
        return torch.stack((vectors[..., 1::2], -vectors[..., ::2]), -1).flatten(-2)


def _not_one_path(oracle: str, old: str, given: object) -> UserError:
    """The error of no path, or of one beside its name of version 0.1."""
    if given is None:
        return UserError(f"{oracle} reads a file: give its path")
    return UserError(f"{oracle} has path and {old}, an older name of it: leave {old} out")


def _draw(num_actions: int, dim: int, seed: int) -> Tensor:
    """float32 [N, D], the same for every precision of the answers."""
    if num_actions < 2 or dim < 2:
        raise UserError(
            f"embeddings need num_actions and dim of at least 2, not {num_actions} and {dim}"
        )
    require_memory(12 * num_actions * dim, f"embeddings {[num_actions, dim]}")
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(num_actions, dim, generator=rng).mul_(dim**-0.25)
