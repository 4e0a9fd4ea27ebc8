"""Networks that read texts, in training and frozen: what pads, what stands together in a batch."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.text_models.chat import in_chat
from nlhf_zoo.text_models.encoding import TextEncoder, Tokens
from nlhf_zoo.text_models.token_types import token_types

# Numbers of some texts and their outputs [b, D] in main memory; NaN for what was not read.
Outputs = Iterator[tuple[list[int], Tensor]]
# A conversation whose text in a chat template is part of a digest.
_CHAT = [{"role": "user", "content": "zebra"}, {"role": "assistant", "content": "quokka"}]


# What rounding makes of an output in batches of different shape, in units of 1 and its own size.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}


class TextNetwork(nn.Module, ABC):
    """A network and how many texts pass through it, in training and in evaluation.

    Batches hold like lengths, the longest first: that wastes no padding, and shows at once whether
    memory suffices. Texts that are too long or without a token are in none: nothing is ever cut.

    Args:
        network: a model of transformers, or a module around one with its ``config``.
        encoder: writes its texts, with its tokenizer.
        width: D, of an output.
        batch_size: texts of a forward pass in evaluation.
        max_tokens: of the longest text; None takes the network's own limit.
        option: what ``max_tokens`` is called in messages.

    Raises:
        UserError: network, tokenizer and limit do not fit together.
    """

    def __init__(
        self,
        network: Any,
        encoder: TextEncoder,
        width: int,
        batch_size: int,
        max_tokens: int | None,
        option: str = "max_tokens",
    ) -> None:
        super().__init__()
        tokenizer, where = encoder.tokenizer, encoder.where
        limit = _longest(network, tokenizer)
        if max_tokens is not None and limit is not None and max_tokens > limit:
            raise UserError(f"{where} reads {limit} tokens at most, but {option} is {max_tokens}")
        self.network = network
        self.encoder = encoder
        self.width = width
        self.max_tokens = limit if max_tokens is None else max_tokens
        self._num_tokens = _num_embeddings(network, tokenizer, where)
        self._types = token_types(network, encoder)
        self._text_config = network.config.get_text_config()
        self._text_config.use_cache = False  # each text is read once
        pad = self._text_config.pad_token_id
        self._pad: int | None = pad if pad is not None and 0 <= pad < self._num_tokens else None
        # Without a padding token one is free where a batch has fewer texts than there are tokens.
        self.batch_size = min(batch_size, self._num_tokens - 1) if self._pad is None else batch_size

    @abstractmethod
    def precision(self, device: str) -> AbstractContextManager[Any]:
        """The context of a forward pass: of which precision its products are."""

    def read(self, batch: dict[str, Tensor]) -> Tensor:
        """What the network gives for a batch, padded on the right: a classifier's [b, D].

        Args:
            batch: ``input_ids``, ``attention_mask`` and, where it needs them, ``token_type_ids``
                [b, T].
        """
        found: Tensor = self.network(**batch).logits
        return found

    def is_readable(self, text: Tokens) -> bool:
        """Whether a text is in a batch."""
        is_short = self.max_tokens is None or len(text) <= self.max_tokens
        return len(text) > 0 and is_short and (self._types is None or self._types.fit(text))

    def forward(self, texts: Sequence[Tokens]) -> Tensor:
        """Outputs of texts [n, D] in main memory, without gradient; NaN where one was not read.

        Each different text is read once.
        """
        place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        outputs = torch.full((len(place), self.width), math.nan, dtype=torch.float32)
        for numbers, output in self.stream([*place]):
            outputs[numbers] = output
        return outputs[[place[text] for text in texts]]

    @torch.no_grad()
    def stream(self, texts: Sequence[Tokens]) -> Outputs:
        """Outputs of the readable ones of some texts, batch by batch, as soon as they are known."""
        readable = [number for number, text in enumerate(texts) if self.is_readable(text)]
        # One order of equal lengths too: the same texts make the same batches.
        readable.sort(key=lambda number: (len(texts[number]), texts[number]), reverse=True)
        before: tuple[list[int], Tensor] | None = None
        for start in range(0, len(readable), self.batch_size):
            batch = readable[start : start + self.batch_size]
            output = self.outputs([texts[number] for number in batch])
            if before is not None:  # handed out while the next is under way on the device
                yield before[0], before[1].cpu()
            before = batch, output
        if before is not None:
            yield before[0], before[1].cpu()

    def outputs(self, batch: Sequence[Tokens]) -> Tensor:
        """One forward pass [b, D], on the device.

        Raises:
            UserError: there is no padding token, and each token ends one of the texts.
        """
        pad = _free_token(batch) if self._pad is None else self._pad
        if pad >= self._num_tokens:
            raise UserError(
                f"{self.encoder.where} has no padding token, and every other one ends a text of "
                "the batch: give its configuration a pad_token_id"
            )
        self._text_config.pad_token_id = pad
        width, device = max(map(len, batch)), next(self.network.parameters()).device
        rows = {
            "input_ids": [[*text, *[pad] * (width - len(text))] for text in batch],
            "attention_mask": [[1] * len(text) + [0] * (width - len(text)) for text in batch],
        }
        if self._types is not None:
            types = map(self._types.of, batch)
            rows["token_type_ids"] = [[*row, *[0] * (width - len(row))] for row in types]
        with self.precision(device.type):
            read = self.read({name: torch.tensor(row).to(device) for name, row in rows.items()})
            return read.float()

    @torch.no_grad()
    def padding_gap(self) -> float:
        """How far the output for a short text in a batch with a longer one is from that alone.

        In units of what rounding may make; 0 where the limit of tokens leaves no longer text.
        """
        short, *longer = self.encoder.tokens([self.encoder.example(n) for n in (1, 8, 4, 2)])
        texts = [text for text in longer if self.is_readable(text) and len(text) > len(short)]
        if not texts:
            return 0.0
        mode = self.network.training
        self.network.eval()
        alone, together = self.outputs([short])[0], self.outputs([short, texts[0]])[0]
        self.network.train(mode)
        rounding = _ROUNDING.get(next(self.network.parameters()).dtype, 0.1)
        gap = float((alone - together).abs().max() / (rounding * (1 + alone.abs().max())))
        return math.inf if math.isnan(gap) and bool(alone.isfinite().all()) else gap


class TextModel(TextNetwork):
    """Reads texts with a frozen network: without gradient, dropout or anything drawn."""

    def __init__(
        self,
        network: Any,
        encoder: TextEncoder,
        width: int,
        batch_size: int,
        max_tokens: int | None,
    ) -> None:
        config = _digest_of_config(network.config)  # before a batch changes its padding
        super().__init__(network, encoder, width, batch_size, max_tokens)
        self.network.requires_grad_(False).eval()
        self.unread = 0  # texts that were too long, or without a token
        self.not_finite = 0  # texts whose output was not finite
        self._config = config
        self._dtypes = self._current_dtypes()
        self._is_looked_at = False

    def refuse_dependence(self) -> None:
        """Refuse batches where the output for a text depends on the others'; looked at once.

        When the model is loaded; but where there is a GPU, which it is not on yet, before it reads
        its first text: weights of bfloat16 can take minutes on a processor.

        Raises:
            UserError: it does.
        """
        self._is_looked_at = True
        if self.batch_size > 1 and self.padding_gap() > 1:
            raise UserError(
                f"{self.encoder.where} says something else of a short text where a longer one "
                f"stands beside it in a batch: set {self.encoder.owner}.batch_size to 1"
            )

    @property
    def last_error(self) -> str:
        """Why texts had no output so far; empty where all had one."""
        limit = "" if self.max_tokens is None else f"longer than {self.max_tokens} tokens, or "
        counts = [
            (self.unread, f"texts that were {limit}without a token that may be read"),
            (self.not_finite, "outputs that were not finite"),
        ]
        return ", ".join(f"{what}: {count}" for count, what in counts if count)

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.network.eval()  # nothing of it is trained: its dropout stays off
        return self

    @override
    def precision(self, device: str) -> AbstractContextManager[Any]:
        return torch.autocast(device, enabled=False)  # its own, not the run's

    @override
    def stream(self, texts: Sequence[Tokens]) -> Outputs:
        """Outputs of all texts, each number once; NaN where one was not read."""
        if self._current_dtypes() != self._dtypes:
            oracle = self.encoder.owner
            raise UserError(
                f"trainer.precision has changed the weights of {oracle}'s model: leave it at "
                f"32-true, and set the dtype of {oracle} and of the policy"
            )
        if not self._is_looked_at:
            self.refuse_dependence()
        unread = [number for number, text in enumerate(texts) if not self.is_readable(text)]
        self.unread += len(unread)
        if unread:
            yield unread, torch.full((len(unread), self.width), math.nan, dtype=torch.float32)
        for numbers, output in super().stream(texts):
            self.not_finite += int((~output.isfinite()).any(-1).sum())
            yield numbers, output

    @property
    def variant(self) -> list[dict[str, Any]]:
        """What a fingerprint holds of how texts are read beside their template; often nothing."""
        types = {} if self._types is None else {"token_types": True}
        return [found] if (found := self.encoder.variant | types) else []

    @cached_property  # the weights are frozen, and may be many gigabytes
    def digest(self) -> str:
        """A text that differs where the weights, their configuration or the tokenizer differ."""
        found = hashlib.sha256(self._config.encode())
        found.update(_digest_of_tokenizer(self.encoder.tokenizer).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().data)
        return found.hexdigest()

    def _current_dtypes(self) -> dict[str, torch.dtype]:
        named = chain(self.network.named_parameters(), self.network.named_buffers())
        return {name: tensor.dtype for name, tensor in named}


def look_at_load(model: TextModel) -> None:
    """Refuse a model that reads padding, where it lies where it will be used."""
    if not torch.cuda.is_available():
        model.refuse_dependence()


def _free_token(batch: Sequence[Tokens]) -> int:
    """A token that ends no text of a batch, to pad with.

    A causal classifier reads its output at the last token that is not padding, told by the token
    and not by the mask. So a model without a padding token takes one that ends no text: its
    end-of-sequence token would move the output one token to the left.
    """
    last = {text[-1] for text in batch}
    return next(token for token in range(len(last) + 1) if token not in last)


def _longest(network: Any, tokenizer: Any) -> int | None:
    """Tokens that a network reads at most; None where it does not say."""
    limits = [getattr(network.config.get_text_config(), "max_position_embeddings", None)]
    limits.append(tokenizer.model_max_length)
    for name, module in network.named_modules():
        # RoBERTa's positions begin behind that of padding, so its last ones are never reached.
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            limits.append(module.num_embeddings - padding - 1)
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    return min(known, default=None)


def _num_embeddings(network: Any, tokenizer: Any, where: str) -> int:
    """The number of tokens that a network has embeddings of; refuse a tokenizer with others."""
    rows = len(network.get_input_embeddings().weight)
    if (largest := max(tokenizer.get_vocab().values())) >= rows:
        raise UserError(
            f"{where} has embeddings of {rows} tokens, but its tokenizer gives tokens up to "
            f"{largest}: they do not belong together"
        )
    return rows


def _digest_of_config(config: Any) -> str:
    """The configuration without what says nothing of the answers."""
    given = json.loads(config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "transformers_version", "use_cache"):
        given.pop(name, None)
    return json.dumps(given, sort_keys=True)


def _digest_of_tokenizer(tokenizer: Any) -> str:
    """What a tokenizer does with a text; of a slow one, its words and what it does with one.

    A chat template may write the names of special tokens, which are not among the rules.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules = [tokenizer.get_vocab(), tokenizer(_CHAT[0]["content"])["input_ids"]]
    else:  # padding and truncation follow its last call
        rules = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    chat = [_example(tokenizer, _CHAT[:1], True), _example(tokenizer, _CHAT, False)]
    return json.dumps([rules, tokenizer.chat_template, names, chat], sort_keys=True)


def _example(tokenizer: Any, messages: list[dict[str, str]], begins_answer: bool) -> str | None:
    """A conversation in the chat template; None where it cannot be written."""
    if not tokenizer.chat_template:
        return None
    try:
        return in_chat(tokenizer, messages, begins_answer, {})
    except Exception:  # by the template: of any kind; others may be written all the same
        return None
