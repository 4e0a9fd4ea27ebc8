"""What oracles of frozen text models share: of those that read single responses, and pairs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.text_oracle import Answer, Order, Question, TextOracle, in_order
from nlhf_zoo.records import Conversation
from nlhf_zoo.text_models.encoding import Reads, TextEncoder, refuse_template
from nlhf_zoo.text_models.heads import PreferenceHead, refuse_temperature
from nlhf_zoo.text_models.loading import Dtype, ModelSettings, Source
from nlhf_zoo.text_models.network import TextModel


class TextModelOracle(TextOracle):
    """An oracle of one or several frozen text models; what cannot be read is invalid, never cut."""

    # The rounding of P and 1 - P to the precision of the responses' weights. What a network says of
    # a text does not depend on who is compared: both orders are read in equal batches.
    tolerance = 1e-6
    reads: Reads  # what a model reads at once

    def _refuse_options(
        self,
        template: str | None,
        temperature: float | None,
        batch_size: int,
        max_tokens: int | None,
    ) -> None:
        """Refuse numbers out of range, or a template without a field, before anything is read."""
        name = type(self).__name__
        if temperature is not None:
            refuse_temperature(name, temperature)
        for option, number in (("batch_size", batch_size), ("max_tokens", max_tokens)):
            if number is not None and number < 1:
                raise UserError(f"{name}.{option} must be at least 1, not {number}")
        if template is not None:
            refuse_template(template, self.reads, f"{name}.template")

    def _load_classifier(
        self, source: Source, config: Any, settings: ModelSettings, batch_size: int, dtype: Dtype
    ) -> tuple[TextEncoder, TextModel]:
        """A sequence classifier, and what writes its texts."""
        name, where = type(self).__name__, source.where
        tokenizer = source.tokenizer()
        encoder = TextEncoder(tokenizer, settings.template, self.reads, name, where)
        network = source.whole_network("sequence classifier", config, dtype)
        width, limit = config.num_labels, settings.max_tokens
        model = TextModel(network, tokenizer, width, batch_size, limit, name, where)
        return encoder, model

    @property
    def last_error(self) -> str:
        """Why texts were not read so far."""
        models = (part for part in self.modules() if isinstance(part, TextModel))
        return "; ".join(filter(None, (model.last_error for model in models)))


class ResponseTextModelOracle(TextModelOracle):
    """Preferences from outputs for single responses, each different text read once."""

    reads = "response"
    penalty_without_end: float = 0.0  # subtracted from outputs for a response that was truncated
    head: PreferenceHead

    @abstractmethod
    def _outputs(self, texts: Sequence[tuple[Conversation, str]]) -> Tensor:
        """Outputs for prompts with a response [n, D]; not finite where one was not read."""

    @override
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        asked, stopped = self.admitted(questions)
        sides = [(q, text) for q in asked for text in (q.first, q.second)]
        texts = {(q.prompt_key, text): (q.conversation, text) for q, text in sides}
        place = {key: number for number, key in enumerate(texts)}
        outputs = self._outputs([*texts.values()]).double()
        outputs = outputs[[place[q.prompt_key, text] for q, text in sides]]
        truncated = [cut for q in asked for cut in (q.first_truncated, q.second_truncated)]
        penalty = self.penalty_without_end * torch.tensor(truncated, dtype=torch.float64)
        outputs = outputs - penalty[:, None]
        yield from enumerate(self.head.preference(outputs[::2], outputs[1::2]).tolist())
        if stopped is not None:
            raise stopped


class PairTextModelOracle(TextModelOracle):
    """Preferences from outputs for whole pairs, each read in one order or in both."""

    reads = "pair"
    encoder: TextEncoder
    model: TextModel

    def __init__(self, order: Order) -> None:
        super().__init__()
        self.order: Order = order
        self.symmetric = order != "none"

    @abstractmethod
    def _preferences(self, output: Tensor) -> Tensor:
        """P(first > second) from a batch of outputs [b, D]; NaN where there is none."""

    @override
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        return in_order(self.in_given_order, questions, self.order)

    @override
    def in_given_order(self, questions: Sequence[Question]) -> Iterator[Answer]:
        asked, stopped = self.admitted(questions)
        tokens = self.encoder.encode_pairs([(q.conversation, q.first, q.second) for q in asked])
        for numbers, output in self.model.stream(tokens):
            yield from zip(numbers, self._preferences(output).tolist(), strict=True)
        if stopped is not None:
            raise stopped
