"""Oracles of models that read a prompt with both responses; such sequence classifiers."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, final

from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.models.base import TextModelOracle
from nlhf_zoo.oracles.text_oracle import Answer, Order, Question, in_order
from nlhf_zoo.text_models.heads import PairHead
from nlhf_zoo.text_models.loading import CAUSAL, Dtype, ModelSettings, Source, read_settings
from nlhf_zoo.text_models.network import TextModel

_NAME = "PairModelOracle"
# Names of the labels of a pair model that needs no `first_label`, as those that are trained here.
_FIRST, _SECOND = "first", "second"


class PairTextModelOracle(TextModelOracle):
    """Preferences from outputs for whole pairs, each read in one order or in both."""

    reads = "pair"
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
        return in_order(self.in_given_order, questions, self.order, self.told)

    @override
    def in_given_order(self, questions: Sequence[Question]) -> Iterator[Answer]:
        asked, stopped = self.admitted(questions)
        pairs = [(q.conversation, q.first, q.second) for q in asked]
        tokens = self.model.encoder.encode_pairs(pairs)
        for numbers, output in self.model.stream(tokens):
            yield from zip(numbers, self._preferences(output).tolist(), strict=True)
        if stopped is not None:
            raise stopped


@final
class PairModelOracle(PairTextModelOracle):
    r"""Preferences from a cross-encoder that reads a prompt and both responses.

    .. math:: P(y > y') = \sigma(z(x, y, y') / temperature)

    with z its logit where it has one, or the difference of its two logits, that of "the first is
    better" first. It is an `AutoModelForSequenceClassification` with its own tokenizer and chat
    template; the policy's tokens are never used, only texts. A pair costs one pass for each order
    that it is read in, so K x L or 2 K L passes for K x L preferences; they may be intransitive.

    A pair whose logit is not finite, that is too long with its prompt, or of which a response holds
    a special token of the tokenizer, is invalid.

    A model that was trained here has its template, max_tokens and temperature beside it; what is
    given here takes their place.

    Args:
        model: hub name or folder, with its tokenizer beside it and its weights as safetensors.
        template: text with the fields {prompt}, {first} and {second}; in one between a tag and its
            closing tag, as in `<first>{first}</first>`, the characters &, < and > are written as in
            XML. None puts the pair, between such tags, into the chat template of the model's
            tokenizer, as one message of the user's.
        first_label: of two labels the one that says that the first response is better, by its name
            in the model's configuration; None takes "first" where they are "first" and "second".
        order: in which the responses are shown: "none" as they come, "random" by a coin that the
            two texts toss, "both" averages the two orders.
        temperature: divides the logit; None is 1.
        batch_size: texts of a forward pass.
        max_tokens: of the longest text; None takes the model's own limit.
        dtype: of the weights; "auto" is bfloat16 on a GPU that has it, else float32.
        revision: of the hub's repository.
        chat_template_kwargs: values of variables of the chat template.
    """

    def __init__(
        self,
        model: str,
        template: str | None = None,
        first_label: str | None = None,
        order: Order = "both",
        temperature: float | None = None,
        batch_size: int = 16,
        max_tokens: int | None = None,
        dtype: Dtype = "auto",
        revision: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(order)
        self._refuse_options(template, temperature, batch_size, max_tokens)
        found = read_settings(model, "pair", _NAME, revision) or ModelSettings("pair")
        settings = found.replaced(template, max_tokens, temperature, chat_template_kwargs)
        source = Source(model, f"the pair model {model}", revision)
        config = source.config()
        self._first = _place_of_first(config, first_label, source.where)
        self.temperature = settings.temperature
        self.head = PairHead(config.num_labels, self.temperature)
        self.model = self._load_classifier(source, config, settings, batch_size, dtype)

    @property
    @override
    def fingerprint(self) -> str:
        template = [self.model.encoder.template, self.model.encoder.message, self._first]
        options = [self.model.max_tokens, self.order, self.temperature]
        return f"{_NAME} {json.dumps([self.model.digest, template, options, *self.model.variant])}"

    @override
    def _preferences(self, output: Tensor) -> Tensor:
        first_last = output.flip(-1) if self._first == 1 else output
        return self.head.preference(first_last, first_last)


def _place_of_first(config: Any, first_label: str | None, where: str) -> int | None:
    """Which of two logits says that the first response is better; None of a single one."""
    if any(name.endswith(CAUSAL) for name in config.architectures or []):
        raise UserError(
            f"{where} is a {config.architectures[0]} and no sequence classifier: take "
            "GenerativePairModelOracle for a language model that answers A or B"
        )
    if config.num_labels not in (1, 2):
        raise UserError(
            f"{where} has {config.num_labels} labels: a pair model has two, or a single logit"
        )
    if config.num_labels == 1:
        if first_label is not None:
            raise UserError(
                f"{where} has a single logit, of the first response: leave out {_NAME}.first_label"
            )
        return None
    names = [config.id2label[number] for number in range(2)]
    labels = f"{where} has the labels {names[0]!r} and {names[1]!r}"
    if first_label is None and sorted(names) != [_FIRST, _SECOND]:
        raise UserError(
            f"{labels}: set {_NAME}.first_label to the one that says that the first response is "
            "better"
        )
    if first_label is not None and names.count(first_label) != 1:
        raise UserError(f"{_NAME}.first_label is {first_label!r}, but {labels}")
    return names.index(_FIRST if first_label is None else first_label)
