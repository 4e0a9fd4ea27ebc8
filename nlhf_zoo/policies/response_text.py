"""Responses as text, decoded when somebody reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from torch import Tensor


class DecodedText(Sequence[Sequence[str]]):
    """B rows of K texts, without special tokens; all are decoded at the first look.

    Args:
        tokenizer: of the policy.
        tokens: LongTensor[B, K, T].
        mask: bool [B, K, T].
    """

    def __init__(self, tokenizer: Any, tokens: Tensor, mask: Tensor) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._mask = mask
        self._rows: list[list[str]] | None = None

    @property
    def rows(self) -> list[list[str]]:
        """The texts."""
        if self._rows is None:
            num = self._tokens.shape[1]
            flat, mask = self._tokens.flatten(0, 1).cpu(), self._mask.flatten(0, 1).cpu()
            kept = [row[keep].tolist() for row, keep in zip(flat, mask, strict=True)]
            texts = self._tokenizer.batch_decode(kept, skip_special_tokens=True)
            self._rows = [texts[i : i + num] for i in range(0, len(texts), num)]
        return self._rows

    @overload
    def __getitem__(self, index: int) -> Sequence[str]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Sequence[str]]: ...

    def __getitem__(self, index: int | slice) -> Sequence[str] | Sequence[Sequence[str]]:
        """The texts of one prompt, or of several."""
        return self.rows[index]

    def __len__(self) -> int:
        """The number of prompts, B."""
        return len(self._tokens)
