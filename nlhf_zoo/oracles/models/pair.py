"""A pair model as the judge: a sequence classifier that reads a prompt with both responses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.text_oracle import Answer, Order, Question, TextOracle, in_order
from nlhf_zoo.text_models.encoding import TextEncoder, refuse_template
from nlhf_zoo.text_models.frozen import TextModel, logits, refuse_numbers
from nlhf_zoo.text_models.loading import CAUSAL, Dtype, load_config, load_network, load_tokenizer
from nlhf_zoo.text_models.settings import read_settings

_NAME = "PairModelOracle"
# Names of the labels of a pair model that needs no `first_label`, as those that are trained here.
_FIRST, _SECOND = "first", "second"


@final
class PairModelOracle(TextOracle):
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
    """

    tolerance = 1e-6  # the rounding of P and 1 - P to the precision of the responses' weights

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
    ) -> None:
        super().__init__()
        refuse_numbers(_NAME, temperature, batch_size, max_tokens)
        if template is not None:
            refuse_template(template, "pair", f"{_NAME}.template")
        self.order: Order = order
        self.symmetric = order != "none"
        where = f"the pair model {model}"
        settings = read_settings(model, "pair", _NAME, revision)
        if settings is not None:
            template = settings.template if template is None else template
            max_tokens = settings.max_tokens if max_tokens is None else max_tokens
            temperature = settings.temperature if temperature is None else temperature
        self.temperature = 1.0 if temperature is None else temperature
        config = load_config(model, revision, where)
        self._first = _place_of_first(config, first_label, where)
        tokenizer = load_tokenizer(model, revision, where)
        self.encoder = TextEncoder(tokenizer, template, "pair", _NAME, where)
        network = load_network(model, "sequence classifier", config, revision, dtype, where)
        width = config.num_labels
        self.model = TextModel(
            network, tokenizer, logits, width, batch_size, max_tokens, _NAME, where
        )

    @property
    def fingerprint(self) -> str:
        """The model's weights, and all that a preference depends on."""
        template = [self.encoder.template, self.encoder.message, self._first]
        options = [self.model.max_tokens, self.order, self.temperature]
        return f"{_NAME} {json.dumps([self.model.digest(), template, options])}"

    @property
    def last_error(self) -> str:
        """Why pairs were invalid so far."""
        return self.model.last_error

    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Read each pair in one order or in both.

        Raises:
            UserError: a prompt does not fit the template.
            OracleStoppedError: a budget does not allow all questions.
        """
        return in_order(self.in_given_order, questions, self.order)

    def in_given_order(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Read each pair as it is shown, first response first.

        Raises:
            UserError: a prompt does not fit the template.
            OracleStoppedError: a budget does not allow all questions.
        """
        return pair_answers(questions, self.admitted, self.encoder, self.model, self._preferences)

    def _preferences(self, output: Tensor) -> list[float]:
        """P(first > second) from a batch's logits [b, 1 or 2]; NaN where these are not finite."""
        logit = output.double()
        if self._first is None:
            logit = logit[:, 0]
        else:
            logit = logit[:, self._first] - logit[:, 1 - self._first]
        readable = output.isfinite().all(-1)
        preference = (logit / self.temperature).sigmoid()
        return preference.masked_fill(~readable, math.nan).tolist()


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
    if first_label is None:
        if sorted(names) != [_FIRST, _SECOND]:
            raise UserError(
                f"{where} has the labels {names[0]!r} and {names[1]!r}: set {_NAME}.first_label to "
                "the one that says that the first response is better"
            )
        return names.index(_FIRST)
    if names.count(first_label) != 1:
        raise UserError(
            f"{_NAME}.first_label is {first_label!r}, but {where} has the labels {names[0]!r} and "
            f"{names[1]!r}"
        )
    return names.index(first_label)


def pair_answers(
    questions: Sequence[Question],
    admitted: Callable[[Sequence[Question]], tuple[Sequence[Question], Exception | None]],
    encoder: TextEncoder,
    model: TextModel,
    preferences: Callable[[Tensor], list[float]],
) -> Iterator[Answer]:
    """Read each pair as it is shown, first response first.

    Args:
        questions: different ones.
        admitted: `TextOracle.admitted`.
        encoder: writes a pair.
        model: reads it.
        preferences: P(first > second) from a batch of its outputs [b, D]; NaN where there is none.

    Yields:
        number of a question, and its answer, as soon as its batch is read.

    Raises:
        UserError: a prompt does not fit the template.
        OracleStoppedError: a budget does not allow all questions.
    """
    asked, stopped = admitted(questions)
    tokens = encoder.encode_pairs(
        [(question.conversation, question.first, question.second) for question in asked]
    )
    for numbers, output in model.stream(tokens):
        yield from zip(numbers, preferences(output), strict=True)
    if stopped is not None:
        raise stopped
