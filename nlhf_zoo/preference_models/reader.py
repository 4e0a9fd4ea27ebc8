"""How a network that is being trained reads pairs of responses, and which of them it cannot."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from nlhf_zoo.data.pairs import PreferencePairs
from nlhf_zoo.errors import UserError
from nlhf_zoo.preference_models.backbones import Classifier
from nlhf_zoo.records import Conversation
from nlhf_zoo.text_models.encoding import TextEncoder, Tokens
from nlhf_zoo.text_models.heads import PreferenceHead
from nlhf_zoo.text_models.network import TextNetwork

# A prompt and two responses, in the order in which they are shown.
Shown = tuple[Conversation, str, str]
# The text of each response; of a head that reads pairs, the text of the pair and the same again.
Texts = tuple[Tokens, Tokens]
Unreadable = Literal["refuse", "drop"]
_CHUNK = 1024  # pairs that are encoded at once, before the training begins


class Reader(TextNetwork):
    """A network in training, its tokenizer and its head; refuses parts that do not fit each other.

    In evaluation it reads as the frozen model of an oracle does, batch by batch: what is written to
    a folder and read again gives the same probabilities to the last bit.
    """

    def __init__(
        self,
        classifier: Classifier,
        head: PreferenceHead,
        template: str | None,
        max_tokens: int | None,
        batch_size: int,
        chat_template_kwargs: Mapping[str, Any],
    ) -> None:
        for option, number in (("max_tokens", max_tokens), ("eval_batch_size", batch_size)):
            if number is not None and number < 1:
                raise UserError(f"model.{option} must be at least 1, not {number}")
        network, tokenizer, where = classifier.network, classifier.tokenizer, classifier.where
        encoder = TextEncoder(
            tokenizer,
            template,
            head.reads,
            "PreferenceModel",
            where,
            variables=chat_template_kwargs,
        )
        option = "model.max_tokens"
        super().__init__(network, encoder, head.outputs, batch_size, max_tokens, option)
        self.head = head
        self._in_bfloat16 = network.dtype == torch.bfloat16

    @override
    def precision(self, device: str) -> AbstractContextManager[Any]:
        # Under adapters of float32 a network of bfloat16 needs types to be mixed; else training has
        # the run's precision, and evaluation the weights' own.
        mixed = torch.autocast(device, dtype=torch.bfloat16)
        return mixed if self._in_bfloat16 else nullcontext()

    def refuse_dependence(self) -> None:
        """Refuse a network that would learn from padding.

        Raises:
            UserError: its output for a text depends on the others' in a batch.
        """
        if self.padding_gap() > 1:
            raise UserError(
                f"{self.encoder.where} says something else of a short text where a longer one "
                "stands beside it in a batch, so that it would learn from padding: take another "
                "backbone"
            )

    def encode(self, shown: Sequence[Shown]) -> list[Texts]:
        """The texts of pairs; nothing is cut."""
        if self.head.reads == "pair":
            return [(text, text) for text in self.encoder.encode_pairs(shown)]
        firsts = [(conversation, first) for conversation, first, _ in shown]
        seconds = [(conversation, second) for conversation, _, second in shown]
        texts = self.encoder.encode_responses([*firsts, *seconds])
        return list(zip(texts[: len(shown)], texts[len(shown) :], strict=True))

    def problem(self, texts: Texts) -> str:
        """Why a pair cannot be read; empty where it can."""
        if all(map(self.is_readable, texts)):
            return ""
        length = max(map(len, texts))
        if self.max_tokens is not None and length > self.max_tokens:
            return f"has a text of {length} tokens, and {self.max_tokens} are read at most"
        return "has a text without tokens, or one that holds a special token of the tokenizer"

    def is_read(self, texts: Texts, where: str, unreadable: Unreadable) -> bool:
        """Whether a pair can be read; one that cannot, and is not to be dropped, is refused."""
        problem = self.problem(texts)
        if problem and unreadable == "refuse":
            raise UserError(
                f"{where} {problem}: shorten it, or set model.unreadable to drop to leave such "
                "pairs out"
            )
        return not problem

    def log_odds(self, pairs: Sequence[Texts]) -> Tensor:
        """Log-odds of P(first > second) with gradient [B], of pairs that can be read."""
        firsts, seconds = zip(*pairs, strict=True)
        if self.head.reads == "pair":
            outputs = self.outputs(firsts)
            return self.head.log_odds(outputs, outputs)
        return self.head.log_odds(*self.outputs([*firsts, *seconds]).chunk(2))

    def preferences(self, shown: Sequence[Shown]) -> Tensor:
        """P(first > second) as the pairs are shown, float64 [n]; NaN for what cannot be read.

        Each different text is read once, in batches of like lengths.
        """
        outputs = self([text for pair in self.encode(shown) for text in pair])
        return self.head.preference(outputs[::2], outputs[1::2])


def look_through(
    data: PreferencePairs, reader: Reader, unreadable: Unreadable, shown: bool
) -> None:
    """Encode all pairs once, those held out too: refuse or count those that cannot be read.

    Where it is ``shown``, there is a progress bar if it takes long, and the numbers are said. A
    source none of whose pairs can be read is refused.
    """
    sources = [(data.source, data.training_pairs)]
    if data.validation_pairs:
        sources.append((data.validation_source or data.source, data.validation_pairs))
    for source, rows in sources:
        left_out = 0
        for start in tqdm(
            range(0, len(rows), _CHUNK),
            "Encoding",
            unit_scale=_CHUNK,
            unit=" pairs",
            delay=1,
            leave=False,
            disable=not shown,
        ):
            some = rows[start : start + _CHUNK]
            texts = reader.encode([(row.conversation, row.first, row.second) for row in some])
            for row, text in zip(some, texts, strict=True):
                left_out += not reader.is_read(text, source.where(row.row), unreadable)
        if left_out == len(rows):
            raise UserError(
                f"{source.path}: {reader.encoder.where} can read none of the {left_out} pairs"
            )
        if left_out and shown:
            print(
                f"{source.path}: {left_out} of {len(rows)} pairs cannot be read, and are left out",
                file=sys.stderr,
            )
