"""Prompts and responses as the tokens that a model of texts reads: no model is needed for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from string import Formatter
from typing import Any, Literal, final
from xml.sax.saxutils import escape

from nlhf_zoo.errors import UserError, cause, shown
from nlhf_zoo.records import Conversation
from nlhf_zoo.text_models.added_tokens import added_tokens
from nlhf_zoo.text_models.chat import Variables, in_chat, refuse_variables

Tokens = tuple[int, ...]
# What a model reads at once: a prompt with one response, or with the two of a pair.
Reads = Literal["response", "pair"]
FIELDS: Mapping[Reads, tuple[str, ...]] = {
    "response": ("prompt", "response"),
    "pair": ("prompt", "first", "second"),
}
# A pair in a chat template: one message of the user's.
PAIR_MESSAGE = (
    "<prompt>\n{prompt}\n</prompt>\n\n<first>\n{first}\n</first>\n\n<second>\n{second}\n</second>"
)
# Words that no template has of its own.
_PROBE = {"prompt": "zebra", "response": "quokka", "first": "okapi", "second": "tapir"}
_LEFT_OUT = {"response": "the prompt or the response", "pair": "the prompt or a response"}


@final
@dataclass(eq=False)
class TextEncoder:
    """Puts prompts and responses into a template, and encodes the text with a model's tokenizer.

    - A template of one's own holds a prompt of one message. Text of special tokens in it, as
      ``[SEP]``, is read as these; what the tokenizer puts around a text is added, unless the text
      begins with it, or the template ends with it.
    - Without one the chat template of the tokenizer is used, for a conversation of any length. One
      response follows it as the assistant's message. A pair becomes one message of the user's, with
      the fields of ``message``; of a conversation of several messages {prompt} then has all, each
      as "role: content".

    In a pair nobody may speak for the other. A field between an opening and its closing tag, as in
    ``<first>{first}</first>``, is quoted: its &, < and > are written as in XML, so that no response
    ends its quotation. A pair with another number of special tokens of the tokenizer than the same
    prompt has with plain words has no tokens: a response that holds one, or makes one together with
    the template around it, would be read as the template's own.

    Raises:
        UserError: there is neither template nor chat template, or what is read is left out of it;
            and whenever a text is written, if the prompt does not fit the template.
    """

    tokenizer: Any
    template: str | None  # text with the fields of ``reads``; None takes the chat template
    reads: Reads
    owner: str  # whose argument ``template`` is, in messages
    where: str  # whose tokenizer it is, in messages, as "the reward model FOLDER"
    message: str = PAIR_MESSAGE  # how a pair stands in a chat template, with the same fields
    # The text is to be continued: the chat template begins the assistant's message, and what the
    # tokenizer puts after a text is left out.
    begins_answer: bool = False
    variables: Variables = field(default_factory=dict)  # of the chat template
    # As models were trained whose settings have format 1: what the tokenizer puts around a text is
    # added to every one.
    first_format: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be filled in, and look for what a response may not write."""
        if self.template is not None:
            refuse_template(self.template, self.reads, f"{self.owner}.template")
        self._refuse_variables()
        written = self.message if self.template is None else self.template
        self._quoted = _quoted(written) if self.reads == "pair" else frozenset()
        added = self.tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        special |= set(self.tokenizer.all_special_tokens)
        # A sign such as "!", which some tokenizers pad with, says nothing where it is read.
        self._special = sorted(token for token in special if len(token) > 1)
        self._words = _plain_words(self.tokenizer)
        self._plain: tuple[str, list[int]] | None = None  # special tokens of the last prompt
        self.added = added_tokens(self.tokenizer)
        self._may_open = self._ends_itself = False
        if self.template is None:
            self._refuse_chat_template()
        elif not self.first_format:
            tokens = self.tokenizer(self.example())["input_ids"]
            begins_with_field = not next(iter(Formatter().parse(self.template)))[0]
            opened = len(self.added.begun_once(tokens)) < len(tokens)
            self._may_open = bool(self.added.before) and (opened or begins_with_field)
            self._ends_itself = self.added.ends_twice(tokens) and not self.begins_answer

    @property
    def variant(self) -> dict[str, Any]:
        """What a fingerprint holds of the encoder beside tokenizer and template; often nothing."""
        found = {
            "chat_template_kwargs": dict(self.variables),
            "begins_once": self._may_open,
            "ends_once": self._ends_itself,
        }
        return {name: value for name, value in found.items() if value}

    def example(self, times: int = 1) -> str:
        """A text of plain words in the template."""
        between = " " if self._words == _PROBE else ""
        words = [between.join([self._words[name]] * times) for name in FIELDS[self.reads]]
        render = self.render_response if self.reads == "response" else self.render_pair
        return render([{"role": "user", "content": words[0]}], *words[1:]) or ""

    def encode_responses(self, asked: Sequence[tuple[Conversation, str]]) -> list[Tokens]:
        """Tokens of prompts, each with a response."""
        return self.tokens([self.render_response(*one) for one in asked])

    def encode_pairs(self, asked: Sequence[tuple[Conversation, str, str]]) -> list[Tokens]:
        """Tokens of prompts, each with two responses; none where these make a special token."""
        texts = [self.render_pair(*one) for one in asked]
        safe = iter(self.tokens([text for text in texts if text is not None]))
        return [() if text is None else next(safe) for text in texts]

    def example_texts(self) -> list[str]:
        """The texts that the tokenizer's separator parts in a template of one's own."""
        opening, ending = (
            self.tokenizer.decode([*tokens]) for tokens in (self.added.before, self.added.after)
        )  # which the template may have itself
        text = self.example().strip().removeprefix(opening).removesuffix(ending)
        separator = self.tokenizer.sep_token
        return text.split(separator) if separator else [text]

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of texts that are already in the template; nothing is cut or padded."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=self.template is not None,  # a chat template has its own
            padding=False,
            truncation=False,
            verbose=False,
        )
        rows: Sequence[Sequence[int]] = encoded["input_ids"]
        if self.template is not None:
            rows = [self._around_once(row) for row in rows]
        return [tuple(row) for row in rows]

    def _around_once(self, tokens: Sequence[int]) -> Sequence[int]:
        """Without what the tokenizer has put around a text and does not belong there."""
        if not self.first_format:
            tokens = self.added.begun_once(tokens)
        is_ended = self.begins_answer or self._ends_itself
        return self.added.without_end(tokens) if is_ended else tokens

    def render_response(self, conversation: Conversation, response: str) -> str:
        """The text of a prompt with a response."""
        if self.template is None:
            return self._in_chat([*conversation, {"role": "assistant", "content": response}])
        return self.template.format(prompt=self._one_message(conversation), response=response)

    def render_pair(self, conversation: Conversation, first: str, second: str) -> str | None:
        """The text of a prompt with two responses; None where these make a special token."""
        chat = self.template is None
        prompt = _as_text(conversation) if chat else self._one_message(conversation)
        text = self._written(prompt, first, second)
        if self._plain is None or self._plain[0] != prompt:
            plain = self._written(prompt, self._words["first"], self._words["second"])
            self._plain = prompt, self._num_special(plain)
        return text if self._num_special(text) == self._plain[1] else None

    def _written(self, prompt: str, first: str, second: str) -> str:
        texts = {"prompt": prompt, "first": first, "second": second}
        texts |= {name: escape(texts[name]) for name in self._quoted}
        if self.template is not None:
            return self.template.format(**texts)
        return self._in_chat([{"role": "user", "content": self.message.format(**texts)}])

    def _num_special(self, text: str) -> list[int]:
        """How often each special token stands in a text."""
        return [_num_places(text, token) for token in self._special]

    def _one_message(self, conversation: Conversation) -> str:
        if len(conversation) > 1:
            raise UserError(
                f"{self.owner}.template holds one message, but a prompt has "
                f"{len(conversation)}: leave the template out, or give prompts of one message; "
                f"it ends {shown(conversation[-1]['content'])}"
            )
        return conversation[0]["content"]

    def _in_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        try:
            return in_chat(self.tokenizer, messages, self.begins_answer, self.variables)
        except Exception as error:  # by the template: of any kind
            roles = ", ".join(message["role"] for message in messages)
            prompt = messages[:-1] if self.reads == "response" else messages
            raise UserError(
                f"the chat template of {self.where} refuses a conversation of {roles}: "
                f"{cause(error)}; its prompt ends {shown(prompt[-1]['content'])}"
            ) from error

    def _refuse_variables(self) -> None:
        option = f"{self.owner}.chat_template_kwargs"
        if self.variables and self.template is not None:
            raise UserError(f"{option} is for the chat template, which {self.owner} does not use")
        refuse_variables(self.tokenizer, self.variables, option, self.where)

    def _refuse_chat_template(self) -> None:
        """Refuse a tokenizer without a chat template, or with one that leaves out what is read."""
        names = FIELDS[self.reads]
        if not self.tokenizer.chat_template:
            example = " ".join(f"{{{name}}}" for name in names)
            raise UserError(
                f"{self.where} has no chat template: set {self.owner}.template, as in '{example}'"
            )
        text = self.example()
        if any(self._words[name] not in text for name in names):
            raise UserError(
                f"the chat template of {self.where} leaves out {_LEFT_OUT[self.reads]}: "
                f"set {self.owner}.template"
            )


def refuse_template(template: str, reads: Reads, option: str) -> None:
    """Refuse a template, by the name of its option, that lacks a field or has another one."""
    what = f"{option} {shown(template)}"
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{what} cannot be read: {error}; a brace is written twice") from error
    fields = [part[1:] for part in parts if part[1] is not None]
    names = FIELDS[reads]
    for field_name in names:
        if (field_name, "", None) not in fields:
            raise UserError(f"{what} has no field {{{field_name}}}")
    listed = [f"{{{field_name}}}" for field_name in names]
    for name, form, conversion in fields:
        if name not in names or form or conversion:
            raise UserError(
                f"{what} has the field {name!r}: only {', '.join(listed[:-1])} and {listed[-1]} "
                "are filled in, and any other brace is written twice"
            )


def _plain_words(tokenizer: Any) -> Mapping[str, str]:
    """A word for each field; of its vocabulary where a tokenizer cannot write all words."""
    try:
        tokenizer(" ".join(_PROBE.values()))
    except Exception:  # of the tokenizers library, which has no other kind
        special = set(tokenizer.all_special_tokens)
        words = [word for word in tokenizer.get_vocab() if word not in special]
        return dict(zip(_PROBE, words, strict=False)) if len(words) >= len(_PROBE) else _PROBE
    return _PROBE


def _quoted(template: str) -> frozenset[str]:
    """The fields of a template that stand between a tag and its closing tag."""
    parts = [*Formatter().parse(template), ("", None, None, None)]
    found = set()
    for (before, name, *_), (after, *_) in pairwise(parts):
        closing = re.match(r"\s*</([\w-]+)>", after)
        if name and closing and before.rstrip().endswith(f"<{closing[1]}>"):
            found.add(name)
    return frozenset(found)


def _as_text(conversation: Conversation) -> str:
    """A conversation as one text; a single message of the user's as it is."""
    if len(conversation) == 1 and conversation[0]["role"] == "user":
        return conversation[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in conversation)


def _num_places(text: str, token: str) -> int:
    """At how many places of a text a token begins; these may overlap."""
    number, place = 0, text.find(token)
    while place >= 0:
        number, place = number + 1, text.find(token, place + 1)
    return number
