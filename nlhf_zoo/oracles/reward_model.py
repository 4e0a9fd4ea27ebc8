"""A reward model as the judge: a sequence classifier with one output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from string import Formatter
from typing import Any, Literal, Self, final

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.texts import conversations, response_texts, shown
from nlhf_zoo.records import Comparison, Conversation, Prompts, Responses

Tokens = tuple[int, ...]


@final
class RewardModelOracle(PreferenceOracle):
    r"""Bradley-Terry preferences from a sequence classifier of one output, r(x, y).

    .. math:: P(y > y') = \sigma((r(x, y) - r(x, y')) / temperature)

    It is an `AutoModelForSequenceClassification` with its own tokenizer and chat template; the
    policy's tokens are never used, only texts. Each different text is scored once: K + L passes for
    K x L preferences, K in self-play. The preference is transitive: where people's is not, so that
    a Nash policy is more than the best response, another oracle is needed.

    A response whose reward is not finite, or that is too long with its prompt, is invalid.

    Args:
        model: hub name or folder, with its tokenizer beside it and its weights as safetensors.
        temperature: divides differences of rewards.
        template: text with the fields {prompt} and {response} to score; None takes the chat
            template of the model's tokenizer, where a prompt of plain text is one message of the
            user's.
        batch_size: texts of a forward pass.
        max_tokens: of the longest prompt with response; None takes the model's own limit.
        dtype: of its weights; "auto" is bfloat16 on a GPU that has it, else float32. In bfloat16
            rewards have 8 binary digits: those between 4 and 8 are rounded to 1/32.
        penalty_without_end: subtracted from the reward of a response that was cut at the limit of
            new tokens.
        revision: of the hub's repository.
    """

    # Rewards do not depend on the order of the responses: both orders are scored in equal batches.
    tolerance = 1e-6

    def __init__(
        self,
        model: str,
        temperature: float = 1.0,
        template: str | None = None,
        batch_size: int = 16,
        max_tokens: int | None = None,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        penalty_without_end: float = 0.0,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        _refuse_numbers(temperature, batch_size, max_tokens, penalty_without_end)
        if template is not None:
            _refuse_template(template)
        self.temperature = temperature
        self.template = template
        self.batch_size = batch_size
        self.penalty_without_end = penalty_without_end
        self.unread = 0  # texts that were too long, or without a token
        self.not_finite = 0  # texts whose reward was not finite
        where = f"the reward model {model}"
        config = _load_config(model, revision, where)
        self.tokenizer = _load_tokenizer(model, revision, where)
        if template is None:
            _refuse_chat_template(self.tokenizer, where)
        self.model = _load_model(model, config, revision, _weights_dtype(dtype), where)
        rows = len(self.model.get_input_embeddings().weight)
        if (largest := max(self.tokenizer.get_vocab().values())) >= rows:
            raise UserError(
                f"{where} has embeddings of {rows} tokens, but its tokenizer gives tokens up to "
                f"{largest}: they do not belong together"
            )
        limit = _longest(self.model, self.tokenizer)
        if max_tokens is not None and limit is not None and max_tokens > limit:
            raise UserError(f"{where} reads {limit} tokens at most, but max_tokens is {max_tokens}")
        self.max_tokens = limit if max_tokens is None else max_tokens
        text_config = self.model.config.get_text_config()
        text_config.use_cache = False  # each text is read once
        pad = text_config.pad_token_id
        self._pad: int | None = pad if pad is not None and 0 <= pad < rows else None
        if self._pad is None:  # then `_padding` finds a token among `rows`
            self.batch_size = min(batch_size, rows - 1)
        self._dtypes = self._current_dtypes()

    def train(self, mode: bool = True) -> Self:
        """Nothing of it is trained: its dropout stays off."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def forward(self, prompts: Prompts, first: Responses, second: Responses) -> Comparison:
        """Score each response, and compare the rewards.

        Returns:
            preference and validity [B, K, L].

        Raises:
            UserError: there are no texts, or a prompt does not fit the template.
        """
        self._refuse_other_dtypes()
        one, other = self._rewards(prompts, [first, second])
        valid = one.isfinite()[:, :, None] & other.isfinite()[:, None, :]
        difference = (one[:, :, None] - other[:, None, :]) / self.temperature
        return Comparison(torch.sigmoid(difference.masked_fill(~valid, 0.0)), valid)

    def _rewards(self, prompts: Prompts, sides: Sequence[Responses]) -> list[Tensor]:
        """r(x, y) of each side's responses, each [B, K]; NaN for what was not scored."""
        oracle = type(self).__name__
        texts = [response_texts(side, oracle) for side in sides]
        said = conversations(prompts, oracle)
        keys = list(
            dict.fromkeys(
                (number, text)
                for side in texts
                for number, row in zip(range(len(said)), side, strict=True)
                for text in row
            )
        )
        tokens = self._encode([(said[number], text) for number, text in keys])
        reward = self._score(set(tokens))
        known = {key: reward[one] for key, one in zip(keys, tokens, strict=True)}
        found = []
        for side, rows in zip(sides, texts, strict=True):
            values = [[known[number, text] for text in row] for number, row in enumerate(rows)]
            dtype = torch.promote_types(side.weight.dtype, torch.float32)
            rewards = torch.tensor(values, dtype=dtype, device=side.weight.device)
            if side.truncated is not None:
                rewards = rewards - self.penalty_without_end * side.truncated.to(rewards)
            found.append(rewards)
        return found

    def _encode(self, pairs: Sequence[tuple[Conversation, str]]) -> list[Tokens]:
        """Tokens of conversations with their responses."""
        texts = [self._render(conversation, response) for conversation, response in pairs]
        encoded = self.tokenizer(
            texts,
            add_special_tokens=self.template is not None,  # a chat template has its own
            padding=False,
            truncation=False,
            verbose=False,
        )
        return [tuple(tokens) for tokens in encoded["input_ids"]]

    def _render(self, conversation: Conversation, response: str) -> str:
        if self.template is None:
            return _in_chat(self.tokenizer, conversation, response)
        if len(conversation) > 1:
            raise UserError(
                f"RewardModelOracle.template holds one message, but a prompt has "
                f"{len(conversation)}: leave the template out, or give prompts of one message; "
                f"it ends {shown(conversation[-1]['content'])}"
            )
        return self.template.format(prompt=conversation[0]["content"], response=response)

    def _score(self, texts: set[Tokens]) -> dict[Tokens, float]:
        """The model's output for each; NaN for what it cannot read."""
        limit = self.max_tokens
        scored = [one for one in texts if one and (limit is None or len(one) <= limit)]
        self.unread += len(texts) - len(scored)
        # Like lengths waste no padding, the longest first show at once whether memory suffices,
        # and one order of equal lengths makes a reward independent of the order of responses.
        scored.sort(key=lambda one: (len(one), one), reverse=True)
        batches = [scored[i : i + self.batch_size] for i in range(0, len(scored), self.batch_size)]
        outputs = [self._forward(batch) for batch in batches]
        rewards = torch.cat(outputs).tolist() if outputs else []  # one wait for the device
        self.not_finite += sum(not math.isfinite(reward) for reward in rewards)
        return dict.fromkeys(texts, math.nan) | dict(zip(scored, rewards, strict=True))

    def _forward(self, batch: Sequence[Tokens]) -> Tensor:
        """One forward pass, padded on the right [len(batch)]."""
        pad = self._padding(batch)
        self.model.config.get_text_config().pad_token_id = pad
        device = next(self.model.parameters()).device
        longest = max(map(len, batch))
        tokens = [[*one, *[pad] * (longest - len(one))] for one in batch]
        mask = [[1] * len(one) + [0] * (longest - len(one)) for one in batch]
        with torch.autocast(device.type, enabled=False):  # its precision is its own, not the run's
            output = self.model(
                input_ids=torch.tensor(tokens, dtype=torch.long, device=device),
                attention_mask=torch.tensor(mask, dtype=torch.long, device=device),
            )
        logits: Tensor = output.logits
        return logits[:, 0].float()

    def _padding(self, batch: Sequence[Tokens]) -> int:
        """The padding token of a batch.

        A causal classifier reads its output at the last token that is not padding, told by the
        token and not by the mask. So a model without a padding token takes one that ends no text:
        its end-of-sequence token would move the output one token to the left.
        """
        if self._pad is not None:
            return self._pad
        last = {one[-1] for one in batch}
        return next(token for token in range(len(last) + 1) if token not in last)

    def _current_dtypes(self) -> dict[str, torch.dtype]:
        named: Iterator[tuple[str, Tensor]] = chain(
            self.model.named_parameters(), self.model.named_buffers()
        )
        return {name: tensor.dtype for name, tensor in named}

    def _refuse_other_dtypes(self) -> None:
        if self._current_dtypes() != self._dtypes:
            raise UserError(
                "trainer.precision has changed the weights of the reward model: leave it at "
                "32-true, and set the dtype of RewardModelOracle and of the policy"
            )


def _refuse_numbers(
    temperature: float, batch_size: int, max_tokens: int | None, penalty_without_end: float
) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(
            f"RewardModelOracle.temperature must be a finite number above 0, not {temperature}"
        )
    if batch_size < 1:
        raise UserError(f"RewardModelOracle.batch_size must be at least 1, not {batch_size}")
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"RewardModelOracle.max_tokens must be at least 1, not {max_tokens}")
    if not (math.isfinite(penalty_without_end) and penalty_without_end >= 0):
        raise UserError(
            "RewardModelOracle.penalty_without_end must be a finite number of at least 0, "
            f"not {penalty_without_end}"
        )


def _refuse_template(template: str) -> None:
    what = f"RewardModelOracle.template {shown(template)}"
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{what} cannot be read: {error}; a brace is written twice") from error
    fields = [part[1:] for part in parts if part[1] is not None]
    for name in ("prompt", "response"):
        if (name, "", None) not in fields:
            raise UserError(f"{what} has no field {{{name}}}")
    for field, form, conversion in fields:
        if field not in ("prompt", "response") or form or conversion:
            raise UserError(
                f"{what} has the field {field!r}: only {{prompt}} and {{response}} are filled in, "
                "and any other brace is written twice"
            )


def _weights_dtype(dtype: str) -> torch.dtype:
    has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if dtype == "bfloat16" or (dtype == "auto" and has_bfloat16):
        return torch.bfloat16
    return torch.float32


def _load_config(model: str, revision: str | None, where: str) -> Any:
    from transformers import AutoConfig

    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{where} is a folder without config.json: give that of a whole model")
    try:
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except Exception as error:  # of files, the network, the hub: too many kinds to name
        what = "cannot be loaded" if folder.is_dir() else "is no folder here, nor had from the hub"
        raise UserError(f"{where} {what}: {_cause(error)}") from error
    if config.num_labels != 1:
        raise UserError(
            f"{where} has {config.num_labels} outputs: a reward model is a sequence classifier "
            "with one (num_labels 1)"
        )
    return config


def _load_tokenizer(model: str, revision: str | None, where: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except Exception as error:  # likewise
        raise UserError(f"{where} has no tokenizer that can be loaded: {_cause(error)}") from error
    # Where there are no files of a tokenizer, transformers makes one without words.
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):
        raise UserError(f"{where} has no tokenizer: save one beside it")
    return tokenizer


def _load_model(
    model: str, config: Any, revision: str | None, dtype: torch.dtype, where: str
) -> Any:
    """The classifier, frozen."""
    from transformers import AutoModelForSequenceClassification

    try:
        loaded, report = AutoModelForSequenceClassification.from_pretrained(
            model,
            config=config,
            dtype=dtype,
            revision=revision,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # likewise
        raise UserError(
            f"{where} cannot be loaded as a sequence classifier: {_cause(error)}"
        ) from error
    # Transformers would fill these with random numbers.
    if lacking := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise UserError(f"{where} is no trained sequence classifier: its file lacks {lacking[0]}")
    return loaded.requires_grad_(False).eval()


def _longest(model: Any, tokenizer: Any) -> int | None:
    """Tokens that the model reads at most; None where it does not say."""
    limits = [getattr(model.config.get_text_config(), "max_position_embeddings", None)]
    limits.append(tokenizer.model_max_length)
    for name, module in model.named_modules():
        # RoBERTa's positions begin behind that of padding, so its last ones are never reached.
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            limits.append(module.num_embeddings - module.padding_idx - 1)
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    return min(known, default=None)


def _refuse_chat_template(tokenizer: Any, where: str) -> None:
    """Refuse a tokenizer without a chat template, or with one that leaves out what is judged."""
    if not tokenizer.chat_template:
        raise UserError(
            f"{where} has no chat template: set RewardModelOracle.template, as in "
            "'{prompt} {response}'"
        )
    prompt, response = "zebra", "quokka"  # words that no template has of its own
    text = _in_chat(tokenizer, [{"role": "user", "content": prompt}], response)
    if prompt not in text or response not in text:
        raise UserError(
            f"the chat template of {where} leaves out the prompt or the response: "
            "set RewardModelOracle.template"
        )


def _in_chat(tokenizer: Any, conversation: Conversation, response: str) -> str:
    messages = [*map(dict, conversation), {"role": "assistant", "content": response}]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # by the template: of any kind
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"the reward model's chat template refuses a conversation of {roles}: "
            f"{_cause(error)}; its prompt ends {shown(conversation[-1]['content'])}"
        ) from error
    return text


def _cause(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
