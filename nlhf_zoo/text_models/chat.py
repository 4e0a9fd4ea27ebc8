"""Conversations as a tokenizer's chat template writes them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nlhf_zoo.errors import UserError

# Values of a chat template's own variables, such as {"enable_thinking": False}.
Variables = Mapping[str, Any]
# Arguments of `apply_chat_template` that are handed to the template.
_OF_THE_TEMPLATE = {"tools", "documents"}


def in_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], begins_answer: bool, variables: Variables
) -> str:
    """A conversation in the chat template; its tokens are those of the text, and no others.

    Args:
        tokenizer: has the chat template.
        messages: in turn.
        begins_answer: end with the opening of an answer.
        variables: of the template.
    """
    text: str = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=False,
        add_generation_prompt=begins_answer,
        **variables,
    )
    return text


def refuse_variables(tokenizer: Any, variables: Variables, option: str, where: str) -> None:
    """Refuse values that no chat template takes, by the name of the option that gives them.

    Raises:
        UserError: there is no chat template, it does not mention a variable, or the name is that of
            an argument of transformers.
    """
    if not variables:
        return
    if not tokenizer.chat_template:
        raise UserError(f"{option} is given, but {where} has no chat template")
    template = tokenizer.get_chat_template()
    arguments = inspect.signature(tokenizer.apply_chat_template).parameters
    taken = {"messages", *arguments} - _OF_THE_TEMPLATE
    for name in variables:
        if name in taken:
            raise UserError(f"{option}: {name} is no variable of a chat template: leave it out")
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise UserError(f"{option}: the chat template of {where} does not mention {name}")
