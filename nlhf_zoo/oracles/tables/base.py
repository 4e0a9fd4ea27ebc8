"""What every oracle over a table of preferences has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.records import Comparison, Prompts, Responses

# Precision in which an oracle holds and answers; float32 halves the memory of large games.
Precision = Literal["float32", "float64"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}


class TableOracle(PreferenceOracle):
    """P(y > y') looked up in [C, N, N]: C prompts (or independent games), N actions.

    Enumerated responses are the actions 0 to N - 1 in order; the weights of absent ones must be 0.

    Args:
        preference: P(y > y') [C, N, N], antisymmetric about 1/2.
        support: which actions each prompt has, bool [C, N]; None for all.
        names: names of the actions of each prompt, C lists.
        texts: the prompts as texts.
        scores: r [C, N] with P(y > y') = sigma(r(y) - r(y')), where the preference is such a one.
    """

    tolerance = 1e-6  # rounding of float32; a float64 table is exact

    preference: Tensor
    _support: Tensor
    _all_ids: Tensor
    _scores: Tensor | None

    def __init__(
        self,
        preference: Tensor,
        support: Tensor | None = None,
        names: list[list[str]] | None = None,
        texts: Sequence[str] | None = None,
        scores: Tensor | None = None,
    ) -> None:
        super().__init__()
        num_prompts, num_actions, _ = preference.shape
        if support is None:
            support = torch.ones(num_prompts, num_actions, dtype=torch.bool)
        # The game is remade from its arguments: a checkpoint need not carry it.
        self.register_buffer("preference", preference.contiguous(), persistent=False)
        self.register_buffer("_support", support, persistent=False)
        self.register_buffer("_all_ids", torch.arange(num_prompts), persistent=False)
        self.register_buffer("_scores", scores, persistent=False)
        self._names = names
        self._texts = texts

    @property
    def num_prompts(self) -> int:
        """The number of prompts, C."""
        return self.preference.shape[0]

    @property
    def num_actions(self) -> int:
        """The largest number of actions of a prompt, N."""
        return self.preference.shape[1]

    @property
    @override
    def support(self) -> Tensor:
        return self._support

    @property
    @override
    def prompts(self) -> Prompts:
        return Prompts(self._all_ids, text=self._texts)

    @property
    @override
    def action_names(self) -> list[list[str]] | None:
        return self._names

    @property
    @override
    def table(self) -> Tensor:
        return self.preference

    @property
    @override
    def has_scores(self) -> bool:
        return self._scores is not None

    @property
    @override
    def score_table(self) -> Tensor | None:
        return self._scores

    @override
    def score(self, prompts: Prompts, responses: Responses) -> tuple[Tensor, Tensor]:
        if self._scores is None:
            return super().score(prompts, responses)
        scores = self._scores[prompts.ids[:, None], self.actions(responses)]
        return scores, all_valid(scores)

    def actions(self, responses: Responses) -> Tensor:
        """Rows of the table that these responses are [B, K]."""
        return responses.actions

    @override
    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        """Look the pairs up; all pairs of all prompts are the table itself, not a copy."""
        preference = self._look_up(prompts, first, second)
        return Comparison(preference, all_valid(preference))

    @override
    def expected(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> tuple[Tensor, Tensor]:
        """The product (P o)(y_k) [B, K] as a matrix-vector product, never as [B, K, L] products."""
        if first.enumerated or not second.enumerated:
            rows = self._look_up(prompts, first, second)
        else:
            rows = self.preference[prompts.ids[:, None], self.actions(first)]
        weight = second.weight.to(rows.dtype)
        # A row vector times the transpose: bmm has a fast path for it, and not for a column vector.
        product = torch.bmm(weight[:, None, :], rows.mT)[:, 0]
        return product, all_valid(product)

    def _look_up(self, prompts: Prompts, first: Responses, second: Responses) -> Tensor:
        """P(y_k > y'_l) [B, K, L]; the table itself for all pairs of all prompts, in order."""
        for responses in (first, second):
            if responses.enumerated and responses.num != self.num_actions:
                raise ValueError(
                    f"{responses.num} responses are enumerated, of {self.num_actions} actions"
                )
        if first.enumerated and second.enumerated:
            is_table = len(prompts) == self.num_prompts and torch.equal(prompts.ids, self._all_ids)
            return self.preference if is_table else self.preference[prompts.ids]
        rows, columns = self.actions(first)[:, :, None], self.actions(second)[:, None, :]
        return self.preference[prompts.ids[:, None, None], rows, columns]


def all_valid(answers: Tensor) -> Tensor:
    """True for each answer, at the cost of one."""
    return torch.ones((), dtype=torch.bool, device=answers.device).expand(answers.shape)
