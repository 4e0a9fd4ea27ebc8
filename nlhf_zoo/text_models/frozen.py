"""A frozen model of texts: how it reads many of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from nlhf_zoo.errors import UserError
from nlhf_zoo.text_models.encoding import Tokens
from nlhf_zoo.text_models.loading import longest, refuse_other_tokenizer

# What a network gives for a batch: (network, tokens [b, T], mask [b, T]) -> outputs [b, D]. Texts
# are padded on the right.
Read = Callable[[Any, Tensor, Tensor], Tensor]
# A conversation whose text in a chat template is part of a digest.
_SAID = [{"role": "user", "content": "zebra"}, {"role": "assistant", "content": "quokka"}]


@final
class TextModel(nn.Module):
    """Reads texts with a frozen network: without gradient, dropout or anything drawn.

    Batches hold like lengths, the longest first: that wastes no padding, and shows at once whether
    memory suffices. Texts that are too long or without a token are not read: never cut.

    Args:
        network: a model of transformers with its weights, or a module around one with its
            ``config``.
        tokenizer: of the network.
        read: what it gives for a batch.
        width: D, of an output.
        batch_size: texts of a forward pass.
        max_tokens: of the longest text; None takes the network's own limit.
        oracle: whose it is, in messages.
        where: which one, in messages, as "the reward model FOLDER".

    Raises:
        UserError: network, tokenizer and limit do not fit together.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        read: Read,
        width: int,
        batch_size: int,
        max_tokens: int | None,
        oracle: str,
        where: str,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.width = width
        self.batch_size = batch_size
        self.unread = 0  # texts that were too long, or without a token
        self.not_finite = 0  # texts whose output was not finite
        self._read, self._oracle = read, oracle
        rows = refuse_other_tokenizer(network, tokenizer, where)
        limit = longest(network, tokenizer)
        if max_tokens is not None and limit is not None and max_tokens > limit:
            raise UserError(f"{where} reads {limit} tokens at most, but max_tokens is {max_tokens}")
        self.max_tokens = limit if max_tokens is None else max_tokens
        self._config = _digest_of_config(network.config)  # before a batch changes its padding
        text_config = network.config.get_text_config()
        text_config.use_cache = False  # each text is read once
        pad = text_config.pad_token_id
        self._pad: int | None = pad if pad is not None and 0 <= pad < rows else None
        if self._pad is None:  # then `free_token` finds one among `rows`
            self.batch_size = min(batch_size, rows - 1)
        self._dtypes = self._current_dtypes()
        self._known_digest: str | None = None

    @property
    def last_error(self) -> str:
        """Why texts had no output so far; empty where all had one."""
        limit = "" if self.max_tokens is None else f"longer than {self.max_tokens} tokens, or "
        counts = [
            (self.unread, f"texts that were {limit}without a token that may be read"),
            (self.not_finite, "outputs that were not finite"),
        ]
        return ", ".join(f"{what}: {count}" for count, what in counts if count)

    def train(self, mode: bool = True) -> Self:
        """Nothing of it is trained: its dropout stays off."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, texts: Sequence[Tokens]) -> Tensor:
        """Outputs of all texts [n, D] in main memory, NaN where one was not read."""
        outputs = torch.full((len(texts), self.width), math.nan, dtype=torch.float32)
        for numbers, output in self.stream(texts):
            outputs[numbers] = output
        return outputs

    def stream(self, texts: Sequence[Tokens]) -> Iterator[tuple[list[int], Tensor]]:
        """Outputs batch by batch, as soon as they are known.

        Args:
            texts: n texts.

        Yields:
            numbers of some texts, and their outputs [b, D] in main memory; NaN where one was not
            read. Each number comes once.

        Raises:
            UserError: somebody has changed the precision of the weights.
        """
        self._refuse_other_dtypes()
        readable = [number for number, text in enumerate(texts) if self._is_readable(text)]
        if len(readable) < len(texts):
            unread = sorted(set(range(len(texts))) - set(readable))
            self.unread += len(unread)
            yield unread, torch.full((len(unread), self.width), math.nan, dtype=torch.float32)
        # One order of equal lengths too: the same texts make the same batches.
        readable.sort(key=lambda number: (len(texts[number]), texts[number]), reverse=True)
        size = self.batch_size
        batches = [readable[start : start + size] for start in range(0, len(readable), size)]
        before: tuple[list[int], Tensor] | None = None
        for batch in batches:  # it is under way on the device while that before is handed out
            output = self._outputs([texts[number] for number in batch])
            if before is not None:
                yield before[0], self._fetched(before[1])
            before = batch, output
        if before is not None:
            yield before[0], self._fetched(before[1])

    def digest(self) -> str:
        """A text that differs where the weights, their configuration or the tokenizer differ."""
        if self._known_digest is None:  # the weights are frozen, and may be many gigabytes
            self._known_digest = self._digest()
        return self._known_digest

    def _digest(self) -> str:
        found = hashlib.sha256(self._config.encode())
        found.update(_digest_of_tokenizer(self.tokenizer).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().data)
        return found.hexdigest()

    def _is_readable(self, text: Tokens) -> bool:
        return len(text) > 0 and (self.max_tokens is None or len(text) <= self.max_tokens)

    def _fetched(self, output: Tensor) -> Tensor:
        output = output.cpu()
        self.not_finite += int((~output.isfinite()).any(-1).sum())
        return output

    @torch.no_grad()
    def _outputs(self, batch: Sequence[Tokens]) -> Tensor:
        """One forward pass [b, D], on the device."""
        pad = free_token(batch) if self._pad is None else self._pad
        self.network.config.get_text_config().pad_token_id = pad
        device = next(self.network.parameters()).device
        tokens, mask = padded(batch, pad)
        with torch.autocast(device.type, enabled=False):  # its precision is its own, not the run's
            return self._read(self.network, tokens.to(device), mask.to(device)).float()

    def _current_dtypes(self) -> dict[str, torch.dtype]:
        named: Iterator[tuple[str, Tensor]] = chain(
            self.network.named_parameters(), self.network.named_buffers()
        )
        return {name: tensor.dtype for name, tensor in named}

    def _refuse_other_dtypes(self) -> None:
        if self._current_dtypes() != self._dtypes:
            raise UserError(
                f"trainer.precision has changed the weights of {self._oracle}'s model: leave it at "
                f"32-true, and set the dtype of {self._oracle} and of the policy"
            )


def logits(network: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """The outputs of a sequence classifier [b, D].

    Args:
        network: a sequence classifier.
        tokens: [b, T], padded on the right.
        mask: [b, T].
    """
    found: Tensor = network(input_ids=tokens, attention_mask=mask).logits
    return found


def padded(batch: Sequence[Tokens], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens and mask of a batch [b, T], padded on the right."""
    width = max(map(len, batch))
    tokens = [[*text, *[pad] * (width - len(text))] for text in batch]
    mask = [[1] * len(text) + [0] * (width - len(text)) for text in batch]
    return torch.tensor(tokens, dtype=torch.long), torch.tensor(mask, dtype=torch.long)


def free_token(batch: Sequence[Tokens]) -> int:
    """A token that ends no text of a batch, to pad with.

    A causal classifier reads its output at the last token that is not padding, told by the token
    and not by the mask. So a model without a padding token takes one that ends no text: its
    end-of-sequence token would move the output one token to the left.
    """
    last = {text[-1] for text in batch}
    return next(token for token in range(len(last) + 1) if token not in last)


def refuse_numbers(
    oracle: str, temperature: float | None, batch_size: int, max_tokens: int | None
) -> None:
    """Refuse options that no oracle of a text model can have.

    Args:
        oracle: whose they are, in messages.
        temperature: divides a logit; None is left to the settings beside the model.
        batch_size: texts of a forward pass.
        max_tokens: of the longest text.

    Raises:
        UserError: one is out of range.
    """
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"{oracle}.temperature must be a finite number above 0, not {temperature}")
    if batch_size < 1:
        raise UserError(f"{oracle}.batch_size must be at least 1, not {batch_size}")
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"{oracle}.max_tokens must be at least 1, not {max_tokens}")


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
        rules = [tokenizer.get_vocab(), tokenizer(_SAID[0]["content"])["input_ids"]]
    else:  # padding and truncation follow its last call
        rules = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    chat = [_in_chat(tokenizer, *given) for given in ((_SAID[:1], True), (_SAID, False))]
    return json.dumps([rules, tokenizer.chat_template, names, chat], sort_keys=True)


def _in_chat(tokenizer: Any, said: Sequence[dict[str, str]], begins_answer: bool) -> str | None:
    """A conversation in the chat template; None where it cannot be written."""
    if not tokenizer.chat_template:
        return None
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in said], tokenize=False, add_generation_prompt=begins_answer
        )
    except Exception:  # by the template: of any kind; others may be written all the same
        return None
    return text
