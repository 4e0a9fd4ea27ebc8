"""How a network that is being trained reads pairs of responses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nlhf_zoo.errors import UserError
from nlhf_zoo.preference_models.backbones import Classifier
from nlhf_zoo.records import Conversation
from nlhf_zoo.text_models.encoding import TextEncoder, Tokens
from nlhf_zoo.text_models.frozen import free_token, logits, padded
from nlhf_zoo.text_models.heads import PreferenceHead
from nlhf_zoo.text_models.loading import longest, refuse_other_tokenizer

# A prompt and two responses, in the order in which they are shown.
Shown = tuple[Conversation, str, str]
# The text of each response; of a head that reads pairs, the text of the pair and the same again.
Texts = tuple[Tokens, Tokens]


class Reader(nn.Module):
    """A network in training, its tokenizer and its head.

    In evaluation it reads as the frozen model of an oracle does, batch by batch: what is written to
    a folder and read again gives the same probabilities to the last bit.

    Args:
        classifier: network and tokenizer.
        head: what the network reads and what its outputs say.
        template: for a prompt and what is read; None takes the tokenizer's chat template.
        max_tokens: of the longest text; None takes the network's own limit.
        batch_size: texts of a forward pass in evaluation.

    Raises:
        UserError: the parts do not fit each other.
    """

    def __init__(
        self,
        classifier: Classifier,
        head: PreferenceHead,
        template: str | None,
        max_tokens: int | None,
        batch_size: int,
    ) -> None:
        super().__init__()
        network, tokenizer, where = classifier.network, classifier.tokenizer, classifier.where
        for option, number in (("max_tokens", max_tokens), ("eval_batch_size", batch_size)):
            if number is not None and number < 1:
                raise UserError(f"model.{option} must be at least 1, not {number}")
        limit = longest(network, tokenizer)
        if max_tokens is not None and limit is not None and max_tokens > limit:
            raise UserError(
                f"{where} reads {limit} tokens at most, but model.max_tokens is {max_tokens}"
            )
        self.network = network
        self.tokenizer = tokenizer
        self.head = head
        self.where = where
        self.max_tokens = limit if max_tokens is None else max_tokens
        self.batch_size = batch_size
        self.encoder = TextEncoder(tokenizer, template, head.reads, "PreferenceModel", where)
        self._rows = refuse_other_tokenizer(network, tokenizer, where)
        self._text_config: Any = network.config.get_text_config()
        self._text_config.use_cache = False  # each text is read once
        pad = self._text_config.pad_token_id
        self._pad: int | None = pad if pad is not None and 0 <= pad < self._rows else None
        self._in_bfloat16 = network.dtype == torch.bfloat16

    def encode(self, shown: Sequence[Shown]) -> list[Texts]:
        """The texts of pairs; nothing is cut.

        Raises:
            UserError: a prompt does not fit the template.
        """
        if self.head.reads == "pair":
            return [(text, text) for text in self.encoder.encode_pairs(shown)]
        firsts = [(conversation, first) for conversation, first, _ in shown]
        seconds = [(conversation, second) for conversation, _, second in shown]
        texts = self.encoder.encode_responses([*firsts, *seconds])
        return list(zip(texts[: len(shown)], texts[len(shown) :], strict=True))

    def problem(self, texts: Texts) -> str:
        """Why a pair cannot be read; empty where it can."""
        longest_one = max(map(len, texts))
        if self.max_tokens is not None and longest_one > self.max_tokens:
            return f"has a text of {longest_one} tokens, and {self.max_tokens} are read at most"
        if not all(texts):
            return "has a text without tokens, or one that holds a special token of the tokenizer"
        return ""

    def log_odds(self, pairs: Sequence[Texts]) -> Tensor:
        """Log-odds of P(first > second) with gradient [B].

        Args:
            pairs: B, each of which can be read.
        """
        if self.head.reads == "pair":
            outputs = self._outputs([text for text, _ in pairs])
            return self.head.log_odds(outputs, outputs)
        outputs = self._outputs([side for column in zip(*pairs, strict=True) for side in column])
        first, second = outputs.chunk(2)
        return self.head.log_odds(first, second)

    @torch.no_grad()
    def preferences(self, shown: Sequence[Shown]) -> Tensor:
        """P(first > second) as the pairs are shown, float64 [n]; NaN for what cannot be read.

        Each different text is read once, in batches of like lengths.
        """
        if not shown:
            return torch.zeros(0, dtype=torch.float64)
        pairs = self.encode(shown)
        texts = dict.fromkeys(text for pair in pairs for text in pair)
        readable = [text for text in texts if not self.problem((text, text))]
        readable.sort(key=lambda text: (len(text), text), reverse=True)
        width = self.head.outputs
        outputs = torch.full((len(texts), width), math.nan, dtype=torch.float64)
        size = self.batch_size if self._pad is not None else min(self.batch_size, self._rows - 1)
        for start in range(0, len(readable), size):
            batch = self._outputs(readable[start : start + size])
            outputs[start : start + len(batch)] = batch.double().cpu()
        outputs = outputs.masked_fill(~outputs.isfinite(), math.nan)
        unread = [text for text in texts if self.problem((text, text))]  # their rows stay NaN
        place = {text: number for number, text in enumerate([*readable, *unread])}
        first, second = (
            outputs[[place[text] for text in side]] for side in zip(*pairs, strict=True)
        )
        return torch.sigmoid(self.head.log_odds(first, second))

    def _outputs(self, texts: Sequence[Tokens]) -> Tensor:
        """One forward pass [n, outputs], padded on the right."""
        pad = free_token(texts) if self._pad is None else self._pad
        if pad >= self._rows:
            raise UserError(
                f"{self.where} has no padding token, and every other one ends a text of the batch: "
                "give its configuration a pad_token_id"
            )
        self._text_config.pad_token_id = pad
        device = next(self.network.parameters()).device
        tokens, mask = padded(texts, pad)
        # Under adapters of float32 a network of bfloat16 needs types to be mixed; else training has
        # the run's precision, and evaluation the weights' own.
        mixed = torch.autocast(device.type, dtype=torch.bfloat16)
        with mixed if self._in_bfloat16 else nullcontext():
            return logits(self.network, tokens.to(device), mask.to(device)).float()
