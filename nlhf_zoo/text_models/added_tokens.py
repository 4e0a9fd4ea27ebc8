"""What a tokenizer puts around a text by itself, which a text may hold already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AddedTokens:
    """Tokens that a tokenizer puts before and after every text.

    A text that is already in its template begins with the tokenizer's first tokens, and has them
    once all the same.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    def begun_once(self, tokens: Sequence[int]) -> Sequence[int]:
        """The tokens of a text, without the first ones that the tokenizer put before its own."""
        size = len(self.before)
        is_doubled = size > 0 and tuple(tokens[: 2 * size]) == 2 * self.before
        return tokens[size:] if is_doubled else tokens

    def without_end(self, tokens: Sequence[int]) -> Sequence[int]:
        """The tokens of a text that is to be continued: it ends as its writer ended it."""
        return tokens[: len(tokens) - len(self.after)]

    def ends_twice(self, tokens: Sequence[int]) -> bool:
        """Whether a text ends with the last tokens itself, before those of the tokenizer."""
        size = len(self.after)
        return size > 0 and tuple(tokens[-2 * size :]) == 2 * self.after


def added_tokens(tokenizer: Any) -> AddedTokens:
    """Read off a text what the tokenizer puts around all of them."""
    plain: list[int] = []
    whole: list[int] = []
    for text in ("a", *tokenizer.get_vocab()):  # some have no letter a, and refuse it
        try:
            plain, whole = (
                tokenizer(text, add_special_tokens=special)["input_ids"]
                for special in (False, True)
            )
        except Exception:  # of the tokenizers library, which has no other kind
            continue
        if plain:
            break
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return AddedTokens(tuple(whole[:start]), tuple(whole[start + len(plain) :]))
    return AddedTokens((), ())
