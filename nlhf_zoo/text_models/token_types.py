"""The types of tokens by which BERT and its kin tell the two texts of a pair apart."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from nlhf_zoo.errors import UserError, shown
from nlhf_zoo.text_models.encoding import TextEncoder, Tokens

_NAME = "token_type_ids"


@dataclass(frozen=True, slots=True)
class TokenTypes:
    """Types of a text's tokens, as the tokenizer itself makes them of one text or of two."""

    before: tuple[int, ...]  # of the tokens that the tokenizer puts before every text ...
    after: tuple[int, ...]  # ... and after it; between them 0, and 1 behind the separator
    separator: int | None = None  # token between two texts; None where there is one

    def fit(self, text: Tokens) -> bool:
        """Whether it can be seen where the second text begins: the separator stands once."""
        return self.separator is None or self._inner(text).count(self.separator) == 1

    def of(self, text: Tokens) -> list[int]:
        """The type of each token of a text that fits."""
        inner = self._inner(text)
        first = len(inner) if self.separator is None else inner.index(self.separator) + 1
        return [*self.before, *[0] * first, *[1] * (len(inner) - first), *self.after]

    def _inner(self, text: Tokens) -> Tokens:
        return text[len(self.before) : len(text) - len(self.after)]


def token_types(network: Any, encoder: TextEncoder) -> TokenTypes | None:
    """The types that a network needs of the texts of an encoder; None where all are 0.

    A template of one's own that holds the tokenizer's separator is two texts, and the tokenizer is
    asked for the types of such. A chat template writes one text.

    Raises:
        UserError: the network has types, and the tokenizer does not say which those of the template
            are.
    """
    tokenizer = encoder.tokenizer
    is_read = _NAME in inspect.signature(network.forward).parameters
    is_read &= getattr(network.config.get_text_config(), "type_vocab_size", 2) > 1
    is_made = _NAME in tokenizer.model_input_names
    if encoder.template is None or encoder.first_format or not (is_read and is_made):
        return None
    (tokens,) = encoder.tokens([encoder.example()])
    texts = encoder.example_texts()
    made = tokenizer(*texts[:2])
    types = made[_NAME]
    if len(texts) < 3 and not any(types):
        return None
    num_before, num_after = len(encoder.added.before), len(encoder.added.after)
    found = TokenTypes(
        tuple(types[:num_before]),
        tuple(types[len(types) - num_after :]),
        tokenizer.sep_token_id if len(texts) > 1 else None,
    )
    is_seen = len(texts) < 3 and found.fit(tokens) and found.of(tokens) == types
    if tuple(made["input_ids"]) != tokens or not is_seen:
        raise UserError(
            f"{encoder.where} has types of tokens, by which it tells two texts apart, and of "
            f"{encoder.owner}.template {shown(encoder.template)} its tokenizer does not make them: "
            f"write {tokenizer.sep_token} once, between the two texts that the model was trained on"
        )
    return found
