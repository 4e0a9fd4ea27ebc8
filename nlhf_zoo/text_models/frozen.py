"""A frozen model of texts, as an oracle asks it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import chain
from typing import Any, Self

import torch
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.text_models.encoding import Tokens
from nlhf_zoo.text_models.network import Outputs, TextNetwork

# A conversation whose text in a chat template is part of a digest.
_CHAT = [{"role": "user", "content": "zebra"}, {"role": "assistant", "content": "quokka"}]


class TextModel(TextNetwork):
    """Reads texts with a frozen network: without gradient, dropout or anything drawn.

    ``oracle`` is whose it is, in messages; other arguments are those of a `TextNetwork`.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        width: int,
        batch_size: int,
        max_tokens: int | None,
        oracle: str,
        where: str,
    ) -> None:
        config = _digest_of_config(network.config)  # before a batch changes its padding
        super().__init__(network, tokenizer, width, batch_size, max_tokens, where)
        self.network.requires_grad_(False).eval()
        self.unread = 0  # texts that were too long, or without a token
        self.not_finite = 0  # texts whose output was not finite
        self._oracle, self._config = oracle, config
        self._dtypes = self._current_dtypes()

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
            raise UserError(
                f"trainer.precision has changed the weights of {self._oracle}'s model: leave it at "
                f"32-true, and set the dtype of {self._oracle} and of the policy"
            )
        unread = [number for number, text in enumerate(texts) if not self.is_readable(text)]
        self.unread += len(unread)
        if unread:
            yield unread, torch.full((len(unread), self.width), math.nan, dtype=torch.float32)
        for numbers, output in super().stream(texts):
            self.not_finite += int((~output.isfinite()).any(-1).sum())
            yield numbers, output

    @cached_property  # the weights are frozen, and may be many gigabytes
    def digest(self) -> str:
        """A text that differs where the weights, their configuration or the tokenizer differ."""
        found = hashlib.sha256(self._config.encode())
        found.update(_digest_of_tokenizer(self.tokenizer).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().data)
        return found.hexdigest()

    def _current_dtypes(self) -> dict[str, torch.dtype]:
        named = chain(self.network.named_parameters(), self.network.named_buffers())
        return {name: tensor.dtype for name, tensor in named}


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
