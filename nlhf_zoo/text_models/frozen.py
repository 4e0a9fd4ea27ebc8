"""A frozen model of texts: how it reads many of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.text_models.batches import Batches, Outputs, each_once
from nlhf_zoo.text_models.encoding import Tokens

# What a network gives for a batch: (network, tokens [b, T], mask [b, T]) -> outputs [b, D]. Texts
# are padded on the right.
Read = Callable[[Any, Tensor, Tensor], Tensor]
# A conversation whose text in a chat template is part of a digest.
_CHAT = [{"role": "user", "content": "zebra"}, {"role": "assistant", "content": "quokka"}]


@final
class TextModel(nn.Module):
    """Reads texts with a frozen network: without gradient, dropout or anything drawn.

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
        self.unread = 0  # texts that were too long, or without a token
        self.not_finite = 0  # texts whose output was not finite
        self._read, self._oracle = read, oracle
        self._config = _digest_of_config(network.config)  # before a batch changes its padding
        self._batches = Batches(network, tokenizer, batch_size, max_tokens, where)
        self.batch_size, self.max_tokens = self._batches.size, self._batches.max_tokens
        self._dtypes = self._current_dtypes()
        self._known_digest: str | None = None

    @property
    def last_words(self) -> str:
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

    def forward(self, texts: Sequence[Tokens]) -> Tensor:
        """Outputs of all texts [n, D] in main memory, NaN where one was not read.

        Each different text is read once.
        """
        return each_once(texts, self.width, self.stream)

    def stream(self, texts: Sequence[Tokens]) -> Outputs:
        """Outputs of n texts batch by batch, as soon as they are known.

        Yields:
            numbers of some texts, and their outputs [b, D] in main memory; NaN where one was not
            read. Each number comes once.

        Raises:
            UserError: somebody has changed the precision of the weights.
        """
        self._refuse_other_dtypes()
        unread = [n for n, text in enumerate(texts) if not self._batches.is_readable(text)]
        self.unread += len(unread)
        if unread:
            yield unread, torch.full((len(unread), self.width), torch.nan, dtype=torch.float32)
        for numbers, output in self._batches.stream(texts, self._outputs):
            self.not_finite += int((~output.isfinite()).any(-1).sum())
            yield numbers, output

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

    @torch.no_grad()
    def _outputs(self, batch: Sequence[Tokens]) -> Tensor:
        """One forward pass [b, D], on the device."""
        device = next(self.network.parameters()).device
        tokens, mask = self._batches.padded(batch, device)
        with torch.autocast(device.type, enabled=False):  # its precision is its own, not the run's
            return self._read(self.network, tokens, mask).float()

    def _current_dtypes(self) -> dict[str, torch.dtype]:
        named = chain(self.network.named_parameters(), self.network.named_buffers())
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
    chat = [_in_chat(tokenizer, _CHAT[:1], True), _in_chat(tokenizer, _CHAT, False)]
    return json.dumps([rules, tokenizer.chat_template, names, chat], sort_keys=True)


def _in_chat(tokenizer: Any, messages: list[dict[str, str]], begins_answer: bool) -> str | None:
    """A conversation in the chat template; None where it cannot be written."""
    if not tokenizer.chat_template:
        return None
    try:
        text: str = tokenizer.apply_chat_template(
            [*map(dict, messages)], tokenize=False, add_generation_prompt=begins_answer
        )
    except Exception:  # by the template: of any kind; others may be written all the same
        return None
    return text
