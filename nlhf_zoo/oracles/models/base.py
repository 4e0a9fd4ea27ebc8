"""What oracles of frozen text models share."""

from __future__ import annotations

from typing import Any

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.text_oracle import TextOracle
from nlhf_zoo.text_models.encoding import Reads, TextEncoder, refuse_template
from nlhf_zoo.text_models.heads import refuse_temperature
from nlhf_zoo.text_models.loading import Dtype, ModelSettings, Source
from nlhf_zoo.text_models.network import TextModel, look_at_load


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
    ) -> TextModel:
        """A sequence classifier, and what writes its texts."""
        encoder = TextEncoder(
            source.tokenizer(),
            settings.template,
            self.reads,
            type(self).__name__,
            source.where,
            variables=settings.chat_template_kwargs,
            first_format=settings.format == 1,
        )
        network = source.whole_network("sequence classifier", config, dtype)
        made = TextModel(network, encoder, config.num_labels, batch_size, settings.max_tokens)
        look_at_load(made)
        return made

    @property
    def last_error(self) -> str:
        """Why texts were not read so far."""
        models = (part for part in self.modules() if isinstance(part, TextModel))
        return "; ".join(filter(None, (model.last_error for model in models)))
