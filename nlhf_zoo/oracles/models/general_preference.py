"""A general preference model as the judge: an embedding of each response, compared pair by pair."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import final

from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.models.base import ResponseTextModelOracle
from nlhf_zoo.records import Conversation
from nlhf_zoo.text_models.heads import GeneralPreferenceHead
from nlhf_zoo.text_models.loading import SETTINGS_FILE, Dtype, Source, read_settings

_NAME = "GeneralPreferenceModelOracle"


@final
class GeneralPreferenceModelOracle(ResponseTextModelOracle):
    r"""General preferences from embeddings v(x, y) of single responses, arXiv:2410.02197.

    .. math:: P(y > y') = \sigma(\langle R v(x, y), v(x, y') \rangle / temperature)

    with R block skew-symmetric, so that P(y > y') + P(y' > y) = 1 and the preference may be
    intransitive. Each different text is read once: K embeddings give all K x K preferences. The
    folder is what `nlhf fit` of a PreferenceModel with a GeneralPreferenceHead writes: a sequence
    classifier of 2k outputs, which are the embedding, its tokenizer, and preference_model.json with
    template and temperature. Published models that bring their own code are not loaded.

    A response whose embedding is not finite, or that is too long with its prompt, is invalid.

    Args:
        model: folder or hub name of the model.
        temperature: divides the score; None takes that of the training.
        batch_size: texts of a forward pass.
        max_tokens: of the longest prompt with response; None takes the limit of the training.
        dtype: of its weights; "auto" is bfloat16 on a GPU that has it, else float32.
        revision: of the hub's repository.
    """

    def __init__(
        self,
        model: str,
        temperature: float | None = None,
        batch_size: int = 16,
        max_tokens: int | None = None,
        dtype: Dtype = "auto",
        revision: str | None = None,
    ) -> None:
        super().__init__()
        self._refuse_options(None, temperature, batch_size, max_tokens)
        source = Source(model, f"the general preference model {model}", revision)
        config = source.config()
        settings = read_settings(model, "general", _NAME, revision)
        if settings is None:
            raise UserError(
                f"{source.where} has no {SETTINGS_FILE}: {_NAME} reads a folder that `nlhf fit` of "
                "a PreferenceModel with a GeneralPreferenceHead has written"
            )
        if config.num_labels % 2:
            raise UserError(
                f"{source.where} has {config.num_labels} outputs: an embedding has an even number "
                "of them"
            )
        settings = settings.replaced(None, max_tokens, temperature)
        self.temperature = settings.temperature
        self.head = GeneralPreferenceHead(config.num_labels, self.temperature)
        self.encoder, self.model = self._load_classifier(
            source, config, settings, batch_size, dtype
        )

    @property
    @override
    def fingerprint(self) -> str:
        """Weights, tokenizer, template and numbers; where the folder lies does not matter."""
        options = [self.encoder.template, self.model.max_tokens, self.temperature]
        return f"general {self.model.digest} {json.dumps(options)}"

    @override
    def _outputs(self, texts: Sequence[tuple[Conversation, str]]) -> Tensor:
        embedding: Tensor = self.model(self.encoder.encode_responses(texts))
        return embedding
