"""Prompts and listed responses as the tokens that a language model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from nlhf_zoo.errors import UserError, cause
from nlhf_zoo.records import Prompts
from nlhf_zoo.text_models.added_tokens import AddedTokens, added_tokens
from nlhf_zoo.text_models.chat import Variables, in_chat, refuse_variables


@dataclass(slots=True)
class PromptEncoder:
    """Makes tokens of texts, and sees that a response has room behind them."""

    tokenizer: Any
    pad: int
    ends: Sequence[int]  # tokens that end a response; the first stands behind a listed response
    room: int  # tokens of the longest response
    positions: int | None  # that the model has; None where it does not say so
    variables: Variables  # of the chat template
    _listed: dict[tuple[str, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _added: AddedTokens = field(init=False)

    def __post_init__(self) -> None:
        option = "model.policy.chat_template_kwargs"
        refuse_variables(self.tokenizer, self.variables, option, "the policy's tokenizer")
        self._added = added_tokens(self.tokenizer)

    def __call__(self, prompts: Prompts) -> Prompts:
        """As ``CausalLMPolicy.encode``."""
        if prompts.tokens is None:  # whether it has room is asked when it is given again
            return self._tokenised(prompts)
        prompts = _padded_left(prompts)
        assert prompts.tokens is not None
        length = prompts.tokens.shape[1]
        if self.positions is not None and length + self.room > self.positions:
            raise UserError(
                f"a prompt of {length} tokens and a response of {self.room} exceed the model's "
                f"{self.positions} positions: lower model.policy.max_new_tokens or "
                "data.max_prompt_tokens"
            )
        return prompts

    def _tokenised(self, prompts: Prompts) -> Prompts:
        if prompts.conversations is not None:
            rows = [self._templated(list(c)) for c in prompts.conversations]
        elif prompts.text is not None:
            rows = [self._plain(text) for text in prompts.text]
        else:
            raise UserError(
                "a language model needs prompts of text: use an oracle with texts such as "
                "SmallLanguage, or set data to TextPrompts"
            )
        if not all(rows):
            where = [not row for row in rows].index(True)
            raise UserError(f"the prompt number {int(prompts.ids[where])} has no tokens")
        tokens, mask = _padded(rows, self.pad, "left")
        return Prompts(prompts.ids, tokens, mask, prompts.text, prompts.conversations)

    def _plain(self, text: str) -> list[int]:
        """A text as it begins for this model, and as its writer ended it."""
        tokens = self.tokenizer(text)["input_ids"]
        return list(self._added.without_end(self._added.begun_once(tokens)))

    def _templated(self, conversation: list[Any]) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise UserError(
                "a prompt is a conversation, but the policy's tokenizer has no chat template: "
                "take an instruction-tuned model, or prompts of plain text"
            )
        try:
            text = in_chat(self.tokenizer, conversation, True, self.variables)
        except Exception as error:  # of any kind; Gemma's refuses a system message, for instance
            raise UserError(
                f"the policy's chat template refuses a prompt: {cause(error)}"
            ) from error
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def listed(self, responses: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Tokens and mask [B, N, T] of listed responses, each with its end if the model has one.

        Raises:
            UserError: the tokenizer cannot write one of them.
        """
        rows = [self._tokens_of(tuple(texts)) for texts in responses]
        width = max(tokens.shape[1] for tokens, _ in rows)
        tokens = torch.stack([_widen(tokens, width, self.pad) for tokens, _ in rows])
        return tokens, torch.stack([_widen(mask, width, False) for _, mask in rows])

    def _tokens_of(self, texts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Tokens and mask [N, T] of the responses to one prompt."""
        if texts not in self._listed:
            rows = [self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
            for text, row in zip(texts, rows, strict=True):
                if self.tokenizer.decode(row) != text:
                    raise UserError(
                        f"the policy's tokenizer cannot write the response {text!r}: "
                        f"it reads it as {self.tokenizer.decode(row)!r}"
                    )
            rows = [[*row, *self.ends[:1]] for row in rows]
            self._listed[texts] = _padded(rows, self.pad, "right")
        return self._listed[texts]


def _padded(rows: list[list[int]], pad: int, side: str) -> tuple[Tensor, Tensor]:
    """Tokens and mask [R, T] of rows, padded on one side."""
    tokens = [torch.tensor(row, dtype=torch.long) for row in rows]
    inside = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    return pad_sequence(tokens, True, pad, side), pad_sequence(inside, True, False, side)


def _widen(rows: Tensor, width: int, value: int) -> Tensor:
    return nn.functional.pad(rows, (0, width - rows.shape[1]), value=value)


def _padded_left(prompts: Prompts) -> Prompts:
    """Prompts whose padding stands on the left, wherever it stood."""
    assert prompts.tokens is not None
    assert prompts.mask is not None
    mask = prompts.mask.bool()
    if bool((mask[:, 1:] >= mask[:, :-1]).all()):
        return prompts
    order = mask.long().argsort(dim=1, stable=True)
    return replace(prompts, tokens=prompts.tokens.gather(1, order), mask=mask.gather(1, order))
