"""How a network that is being trained reads pairs of responses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from nlhf_zoo.errors import UserError
from nlhf_zoo.preference_models.backbones import Classifier
from nlhf_zoo.records import Conversation
from nlhf_zoo.text_models.batches import Batches, each_once
from nlhf_zoo.text_models.encoding import TextEncoder, Tokens
from nlhf_zoo.text_models.frozen import logits
from nlhf_zoo.text_models.heads import PreferenceHead

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
        self.network = network
        self.tokenizer = tokenizer
        self.head = head
        self.where = where
        option = "model.max_tokens"
        self._batches = Batches(network, tokenizer, batch_size, max_tokens, where, option)
        self.max_tokens = self._batches.max_tokens
        self.encoder = TextEncoder(tokenizer, template, head.reads, "PreferenceModel", where)
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
        if all(map(self._batches.is_readable, texts)):
            return ""
        length = max(map(len, texts))
        if self.max_tokens is not None and length > self.max_tokens:
            return f"has a text of {length} tokens, and {self.max_tokens} are read at most"
        return "has a text without tokens, or one that holds a special token of the tokenizer"

    def log_odds(self, pairs: Sequence[Texts]) -> Tensor:
        """Log-odds of P(first > second) with gradient [B].

        Args:
            pairs: B, each of which can be read.
        """
        firsts, seconds = zip(*pairs, strict=True)
        if self.head.reads == "pair":
            outputs = self._outputs(firsts)
            return self.head.log_odds(outputs, outputs)
        return self.head.log_odds(*self._outputs([*firsts, *seconds]).chunk(2))

    @torch.no_grad()
    def preferences(self, shown: Sequence[Shown]) -> Tensor:
        """P(first > second) as the pairs are shown, float64 [n]; NaN for what cannot be read.

        Each different text is read once, in batches of like lengths.
        """
        pairs = self.encode(shown)
        texts = [text for pair in pairs for text in pair]
        stream = partial(self._batches.stream, outputs_of=self._outputs)
        outputs = each_once(texts, self.head.outputs, stream)
        return self.head.preference(outputs[::2], outputs[1::2])

    def _outputs(self, texts: Sequence[Tokens]) -> Tensor:
        """One forward pass [n, outputs], padded on the right."""
        device = next(self.network.parameters()).device
        tokens, mask = self._batches.padded(texts, device)
        # Under adapters of float32 a network of bfloat16 needs types to be mixed; else training has
        # the run's precision, and evaluation the weights' own.
        mixed = torch.autocast(device.type, dtype=torch.bfloat16)
        with mixed if self._in_bfloat16 else nullcontext():
            return logits(self.network, tokens, mask).float()
