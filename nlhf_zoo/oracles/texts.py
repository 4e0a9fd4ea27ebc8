"""Prompts and responses as the texts that a judge reads."""

from __future__ import annotations

from collections.abc import Sequence

from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Conversation, Prompts, Responses


def conversations(prompts: Prompts, oracle: str) -> Sequence[Conversation]:
    """The prompts as conversations; plain text is one message of the user's.

    Args:
        prompts: B prompts.
        oracle: who reads them.

    Raises:
        UserError: they have no text.
    """
    if prompts.conversations is not None:
        return prompts.conversations
    if prompts.text is None:
        raise UserError(
            f"{oracle} reads texts, but the prompts are rows of a table: "
            "give prompts of text, with --data TextPrompts"
        )
    return [[{"role": "user", "content": text}] for text in prompts.text]


def response_texts(responses: Responses, oracle: str) -> Sequence[Sequence[str]]:
    """The responses as text, B rows of K.

    Args:
        responses: K responses to each of B prompts.
        oracle: who reads them.

    Raises:
        UserError: they have no text.
    """
    if responses.text is None:
        raise UserError(
            f"{oracle} reads texts, but the policy's responses have none: "
            "set model.policy to CausalLMPolicy"
        )
    return responses.text
