"""Oracles of models that read single responses: reward models and general preference models."""

from __future__ import annotations

import json
import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.data.texts import conversation_key
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.models.base import TextModelOracle
from nlhf_zoo.oracles.text_oracle import Answer, Question, conversations, response_texts
from nlhf_zoo.records import Comparison, Conversation, Prompts, Responses
from nlhf_zoo.text_models.heads import BradleyTerryHead, GeneralPreferenceHead, PreferenceHead
from nlhf_zoo.text_models.loading import SETTINGS_FILE, Dtype, ModelSettings, Source, read_settings
from nlhf_zoo.text_models.network import TextModel

_REWARD, _GENERAL = "RewardModelOracle", "GeneralPreferenceModelOracle"


class ResponseTextModelOracle(TextModelOracle):
    """Preferences from outputs for single responses, each different text read once."""

    reads = "response"
    penalty_without_end: float = 0.0  # subtracted from outputs for a response that was truncated
    head: PreferenceHead

    @abstractmethod
    def _outputs(self, texts: Sequence[tuple[Conversation, str]]) -> Tensor:
        """Outputs for prompts with a response [n, D]; not finite where one was not read."""

    def compare_all(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        """What calling it says of K x L pairs, by tensors: no question is written for a pair.

        Each different text is read once, and K x L answers a prompt are counted as queries, those
        of equal texts among them.

        Raises:
            UserError: there are no texts.
            OracleStoppedError: a budget does not allow so many.
        """
        name = type(self).__name__
        talks = conversations(prompts, name)
        sides = [(response_texts(one, name), one) for one in (first, second)]
        place: dict[tuple[str, str], int] = {}
        texts: list[tuple[Conversation, str]] = []
        places: list[list[list[int]]] = [[], []]
        for number, talk in enumerate(talks):
            key = conversation_key(talk)
            for side, (rows, _) in enumerate(sides):
                for text in rows[number]:
                    if (key, text) not in place:
                        place[key, text] = len(texts)
                        texts.append((talk, text))
                places[side].append([place[key, text] for text in rows[number]])
        self.ledger.charge(queries=len(prompts) * first.num * second.num)
        began = time.perf_counter()
        outputs = self._outputs(texts).double()
        ours, theirs = (
            outputs[torch.tensor(rows)]
            - (self.penalty_without_end * _cut(one).cpu().double())[..., None]
            for rows, (_, one) in zip(places, sides, strict=True)
        )
        answers = self.head.preference(ours[:, :, None], theirs[:, None])
        invalid = int(answers.isnan().sum())
        spent = int(1e6 * (time.perf_counter() - began))
        self.ledger.charge(invalid=invalid, microseconds=spent)
        answers = answers.to(first.weight.device)
        valid = ~answers.isnan()
        return Comparison(answers.masked_fill(~valid, 0.5), valid)

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


@final
class RewardModelOracle(ResponseTextModelOracle):
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
        chat_template_kwargs: values of variables of the chat template.
    """

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
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        names = [model] if isinstance(model, str) else model
        self._refuse_options(template, temperature, batch_size, max_tokens)
        _refuse_penalty(penalty_without_end)
        _refuse_weights(names, weights, revision)
        self.weights = [1 / len(names)] * len(names) if weights is None else weights
        self.penalty_without_end = penalty_without_end
        self.reads_truncated = penalty_without_end > 0
        found = [
            read_settings(name, "reward", _REWARD, revision) or ModelSettings("reward")
            for name in names
        ]
        given = template, max_tokens, temperature, chat_template_kwargs
        settings = [its.replaced(*given) for its in found]
        self.temperature = _one_temperature([its.temperature for its in settings])
        self.head = BradleyTerryHead(self.temperature)
        self.models = nn.ModuleList()
        for name, its in zip(names, settings, strict=True):
            source = Source(name, f"the reward model {name}", revision)
            config = source.config()
            if config.num_labels != 1:
                raise UserError(
                    f"{source.where} has {config.num_labels} outputs: a reward model is a sequence "
                    "classifier with one (num_labels 1)"
                )
            self.models.append(self._load_classifier(source, config, its, batch_size, dtype))

    @property
    @override
    def fingerprint(self) -> str:
        given = [
            [model.digest, model.encoder.template, model.max_tokens, weight, *model.variant]
            for model, weight in self._parts()
        ]
        return f"{_REWARD} {json.dumps([given, self.temperature, self.penalty_without_end])}"

    @override
    def _outputs(self, texts: Sequence[tuple[Conversation, str]]) -> Tensor:
        """The weighted reward of each prompt with response [n, 1]."""
        total = torch.zeros(len(texts), 1, dtype=torch.float64)
        for model, weight in self._parts():
            total += weight * model(model.encoder.encode_responses(texts)).double()
        return total

    @property
    @override
    def has_scores(self) -> bool:
        return True

    @override
    def score(self, prompts: Prompts, responses: Responses) -> tuple[Tensor, Tensor]:
        """Rewards over the temperature, each different text read once."""
        scores, valid = super().score(prompts, responses)
        penalty = self.penalty_without_end / self.temperature
        return scores - penalty * _cut(responses).to(scores), valid

    @override
    def _scores(self, texts: Sequence[tuple[Conversation, str]]) -> Tensor:
        return self._outputs(texts)[:, 0] / self.temperature

    def _parts(self) -> list[tuple[TextModel, float]]:
        return list(zip(cast(list[TextModel], [*self.models]), self.weights, strict=True))


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
        chat_template_kwargs: values of variables of the chat template; None takes those of the
            training.
    """

    def __init__(
        self,
        model: str,
        temperature: float | None = None,
        batch_size: int = 16,
        max_tokens: int | None = None,
        dtype: Dtype = "auto",
        revision: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._refuse_options(None, temperature, batch_size, max_tokens)
        source = Source(model, f"the general preference model {model}", revision)
        config = source.config()
        settings = read_settings(model, "general", _GENERAL, revision)
        if settings is None:
            raise UserError(
                f"{source.where} has no {SETTINGS_FILE}: {_GENERAL} reads a folder that `nlhf fit` "
                "of a PreferenceModel with a GeneralPreferenceHead has written"
            )
        if config.num_labels % 2:
            raise UserError(
                f"{source.where} has {config.num_labels} outputs: an embedding has an even number "
                "of them"
            )
        settings = settings.replaced(None, max_tokens, temperature, chat_template_kwargs)
        self.temperature = settings.temperature
        self.head = GeneralPreferenceHead(config.num_labels, self.temperature)
        self.model = self._load_classifier(source, config, settings, batch_size, dtype)

    @property
    @override
    def fingerprint(self) -> str:
        """Weights, tokenizer, template and numbers; where the folder lies does not matter."""
        options = [self.model.encoder.template, self.model.max_tokens, self.temperature]
        return f"general {self.model.digest} {json.dumps([*options, *self.model.variant])}"

    @override
    def _outputs(self, texts: Sequence[tuple[Conversation, str]]) -> Tensor:
        embedding: Tensor = self.model(self.model.encoder.encode_responses(texts))
        return embedding


def _cut(responses: Responses) -> Tensor:
    """Which responses were cut before they ended, bool [B, K]."""
    if responses.truncated is not None:
        return responses.truncated
    return torch.zeros_like(responses.weight, dtype=torch.bool)


def _refuse_penalty(penalty: float) -> None:
    if not (math.isfinite(penalty) and penalty >= 0):
        raise UserError(
            f"{_REWARD}.penalty_without_end must be a finite number of at least 0, not {penalty}"
        )


def _refuse_weights(names: list[str], weights: list[float] | None, revision: str | None) -> None:
    if not names:
        raise UserError(f"{_REWARD}.model names no model")
    if len(names) > 1 and revision is not None:
        raise UserError(f"{_REWARD}.revision is that of one model, but {len(names)} are given")
    if weights is None:
        return
    if len(weights) != len(names):
        raise UserError(f"{_REWARD}.weights has {len(weights)} numbers for {len(names)} models")
    if not all(math.isfinite(weight) and weight for weight in weights):
        raise UserError(f"{_REWARD}.weights must be finite numbers other than 0, not {weights}")


def _one_temperature(temperatures: list[float]) -> float:
    if len(set(temperatures)) > 1:
        raise UserError(
            f"the reward models were trained with the temperatures {temperatures}: "
            f"set {_REWARD}.temperature"
        )
    return temperatures[0]
