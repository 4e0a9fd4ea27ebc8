"""Reward models as the judge: sequence classifiers with one output."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import cast, final

import torch
from torch import Tensor, nn

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.records import Conversation
from nlhf_zoo.text_models.encoding import TextEncoder, refuse_template
from nlhf_zoo.text_models.frozen import TextModel, logits, refuse_numbers
from nlhf_zoo.text_models.loading import Dtype, load_config, load_network, load_tokenizer
from nlhf_zoo.text_models.settings import read_settings

_NAME = "RewardModelOracle"


@final
class RewardModelOracle(TextOracle):
    r"""Bradley-Terry preferences from one reward model r(x, y), or a weighted sum of several.

    .. math:: P(y > y') = \sigma\Big(\sum_m w_m (r_m(x, y) - r_m(x, y')) / temperature\Big)

    Each is an `AutoModelForSequenceClassification` of one output with its own tokenizer and chat
    template; the policy's tokens are never used, only texts. Each different text is scored once:
    K + L passes for K x L preferences, K in self-play. What is weighted are rewards, not
    preferences (those: EnsembleOracle). So the preference is transitive: where people's is not, so
    that a Nash policy is more than the best response, another oracle is needed.

    A response whose reward is not finite, or that is too long with its prompt, is invalid.

    A model that was trained here has its template, max_tokens and temperature beside it; what is
    given here takes their place.

    Args:
        model: hub name or folder, with its tokenizer beside it and its weights as safetensors; or
            several.
        weights: w_m of several models, any numbers but 0; None weighs them equally, with sum 1.
        temperature: divides differences of (weighted) rewards; None is 1.
        template: text with the fields {prompt} and {response} to score; None takes the chat
            template of the model's tokenizer, where a prompt of plain text is one message of the
            user's.
        batch_size: texts of a forward pass.
        max_tokens: of the longest prompt with response; None takes the model's own limit.
        dtype: of the weights; "auto" is bfloat16 on a GPU that has it, else float32. In bfloat16
            rewards have 8 binary digits: those between 4 and 8 are rounded to 1/32.
        penalty_without_end: subtracted from the (weighted) reward of a response that was cut at the
            limit of new tokens.
        revision: of the hub's repository, of one model.
    """

    # Rewards do not depend on the order of the responses: both orders are scored in equal batches.
    tolerance = 1e-6

    def __init__(
        self,
        model: str | list[str],
        weights: list[float] | None = None,
        temperature: float | None = None,
        template: str | None = None,
        batch_size: int = 16,
        max_tokens: int | None = None,
        dtype: Dtype = "auto",
        penalty_without_end: float = 0.0,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        names = [model] if isinstance(model, str) else model
        refuse_numbers(_NAME, temperature, batch_size, max_tokens)
        _refuse_penalty(penalty_without_end)
        _refuse_weights(names, weights, revision)
        if template is not None:
            refuse_template(template, "response", f"{_NAME}.template")
        self.weights = [1 / len(names)] * len(names) if weights is None else weights
        self.penalty_without_end = penalty_without_end
        self.reads_truncated = penalty_without_end > 0
        settings = [read_settings(name, "reward", _NAME, revision) for name in names]
        self.temperature = (
            _one_temperature([1.0 if one is None else one.temperature for one in settings])
            if temperature is None
            else temperature
        )
        self.models = nn.ModuleList()
        self.encoders: list[TextEncoder] = []
        for name, its in zip(names, settings, strict=True):
            encoder, loaded = _load(
                name,
                its.template if its is not None and template is None else template,
                batch_size,
                its.max_tokens if its is not None and max_tokens is None else max_tokens,
                dtype,
                revision,
            )
            self.encoders.append(encoder)
            self.models.append(loaded)

    @property
    def fingerprint(self) -> str:
        """The models' weights, and all that a preference depends on."""
        given = [
            [model.digest(), encoder.template, model.max_tokens, weight]
            for model, encoder, weight in self._parts()
        ]
        return f"{_NAME} {json.dumps([given, self.temperature, self.penalty_without_end])}"

    @property
    def last_error(self) -> str:
        """Why responses were invalid so far."""
        return "; ".join(filter(None, (model.last_error for model, *_ in self._parts())))

    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Score each different text, and compare the rewards.

        Raises:
            UserError: a prompt does not fit the template.
            OracleStoppedError: a budget does not allow all questions.
        """
        asked, stopped = self.admitted(questions)
        texts = {
            (question.prompt_key, text): (question.conversation, text)
            for question in asked
            for text in (question.first, question.second)
        }
        rewards = dict(zip(texts, self._rewards(list(texts.values())).tolist(), strict=True))
        sides = [
            [
                rewards[question.prompt_key, question.first]
                - self.penalty_without_end * question.first_truncated,
                rewards[question.prompt_key, question.second]
                - self.penalty_without_end * question.second_truncated,
            ]
            for question in asked
        ]
        reward = torch.tensor(sides, dtype=torch.float64).view(-1, 2)
        preference = torch.sigmoid((reward[:, 0] - reward[:, 1]) / self.temperature)
        yield from enumerate(preference.tolist())
        if stopped is not None:
            raise stopped

    def _rewards(self, texts: Sequence[tuple[Conversation, str]]) -> Tensor:
        """The weighted reward of each prompt with response [n]; NaN for what was not scored."""
        total = torch.zeros(len(texts), dtype=torch.float64)
        for model, encoder, weight in self._parts():
            tokens = encoder.encode_responses(texts)
            different = {text: number for number, text in enumerate(dict.fromkeys(tokens))}
            reward = model(list(different))[:, 0].double()
            total += weight * reward[[different[text] for text in tokens]]
        return total.masked_fill(~total.isfinite(), math.nan)

    def _parts(self) -> list[tuple[TextModel, TextEncoder, float]]:
        models = [cast("TextModel", model) for model in self.models]
        return list(zip(models, self.encoders, self.weights, strict=True))


def _load(
    name: str,
    template: str | None,
    batch_size: int,
    max_tokens: int | None,
    dtype: Dtype,
    revision: str | None,
) -> tuple[TextEncoder, TextModel]:
    where = f"the reward model {name}"
    config = load_config(name, revision, where)
    if config.num_labels != 1:
        raise UserError(
            f"{where} has {config.num_labels} outputs: a reward model is a sequence classifier "
            "with one (num_labels 1)"
        )
    tokenizer = load_tokenizer(name, revision, where)
    encoder = TextEncoder(tokenizer, template, "response", _NAME, where)
    network = load_network(name, "sequence classifier", config, revision, dtype, where)
    return encoder, TextModel(network, tokenizer, logits, 1, batch_size, max_tokens, _NAME, where)


def _refuse_penalty(penalty: float) -> None:
    if not (math.isfinite(penalty) and penalty >= 0):
        raise UserError(
            f"{_NAME}.penalty_without_end must be a finite number of at least 0, not {penalty}"
        )


def _refuse_weights(names: list[str], weights: list[float] | None, revision: str | None) -> None:
    if not names:
        raise UserError(f"{_NAME}.model names no model")
    if len(names) > 1 and revision is not None:
        raise UserError(f"{_NAME}.revision is that of one model, but {len(names)} are given")
    if weights is None:
        return
    if len(weights) != len(names):
        raise UserError(f"{_NAME}.weights has {len(weights)} numbers for {len(names)} models")
    if not all(math.isfinite(weight) and weight for weight in weights):
        raise UserError(f"{_NAME}.weights must be finite numbers other than 0, not {weights}")


def _one_temperature(temperatures: list[float]) -> float:
    if len(set(temperatures)) > 1:
        raise UserError(
            f"the reward models were trained with the temperatures {temperatures}: "
            f"set {_NAME}.temperature"
        )
    return temperatures[0]
