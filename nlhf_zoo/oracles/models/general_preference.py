"""A general preference model as the judge: an embedding of each response, compared pair by pair."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import final

import torch

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.records import Conversation
from nlhf_zoo.text_models.encoding import TextEncoder
from nlhf_zoo.text_models.frozen import TextModel, logits, refuse_numbers
from nlhf_zoo.text_models.heads import preference_score
from nlhf_zoo.text_models.loading import Dtype, load_config, load_network, load_tokenizer
from nlhf_zoo.text_models.settings import SETTINGS_FILE, read_settings


@final
class GeneralPreferenceModelOracle(TextOracle):
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

    tolerance = 1e-6  # the rounding of P and 1 - P to the precision of the responses' weights

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
        name = type(self).__name__
        refuse_numbers(name, temperature, batch_size, max_tokens)
        where = f"the general preference model {model}"
        config = load_config(model, revision, where)
        settings = read_settings(model, "general", name, revision)
        if settings is None:
            raise UserError(
                f"{where} has no {SETTINGS_FILE}: {name} reads a folder that `nlhf fit` of a "
                "PreferenceModel with a GeneralPreferenceHead has written"
            )
        if config.num_labels % 2:
            raise UserError(
                f"{where} has {config.num_labels} outputs: an embedding has an even number of them"
            )
        tokenizer = load_tokenizer(model, revision, where)
        self.encoder = TextEncoder(tokenizer, settings.template, "response", name, where)
        self.temperature = settings.temperature if temperature is None else temperature
        self.model = TextModel(
            load_network(model, "sequence classifier", config, revision, dtype, where),
            tokenizer,
            logits,
            config.num_labels,
            batch_size,
            settings.max_tokens if max_tokens is None else max_tokens,
            name,
            where,
        )

    @property
    def fingerprint(self) -> str:
        """Weights, tokenizer, template and numbers; where the folder lies does not matter."""
        options = [self.encoder.template, self.model.max_tokens, self.temperature]
        return f"general {self.model.digest()} {json.dumps(options)}"

    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Embed each text once, and compare the embeddings.

        Raises:
            UserError: a prompt does not fit the template.
            OracleStoppedError: a budget does not allow more.
        """
        questions, stopped = self.admitted(questions)
        places: dict[tuple[str, str], int] = {}
        texts: list[tuple[Conversation, str]] = []
        sides = []
        for question in questions:
            key = question.prompt_key
            for response in (question.first, question.second):
                if (key, response) not in places:
                    places[key, response] = len(texts)
                    texts.append((question.conversation, response))
                sides.append(places[key, response])
        embedding = self.model(self.encoder.encode_responses(texts)).double()
        embedding = embedding.masked_fill(~embedding.isfinite(), math.nan)
        first, second = embedding[sides].unflatten(0, (-1, 2)).unbind(1)
        chances = torch.sigmoid(preference_score(first, second) / self.temperature)
        yield from enumerate(chances.tolist())
        if stopped is not None:
            raise stopped
