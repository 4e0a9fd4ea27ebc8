"""Who enters a tournament: their names, and the files of what they answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.cli.inputs import prompts_from
from nlhf_zoo.data.texts.conversations import (
    as_conversation,
    checked_prompt,
    checked_response,
    conversation_key,
)
from nlhf_zoo.data.texts.row_source import entry_of, line_of, read_lines
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.text_oracle import Question, conversations
from nlhf_zoo.records import Conversation, Prompts

_EXAMPLE = '{"prompt": "...", "response": "..."}'
_ANSWERS = (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Entrant:
    """A name, and where its answers come from."""

    name: str
    source: str

    @property
    def is_answers(self) -> bool:
        """Whether the source is a file of answers."""
        return Path(self.source).suffix.lower() in _ANSWERS


@dataclass(frozen=True, slots=True)
class Field:
    """N entrants and what each of them answers to each of C prompts.

    Args:
        names: of the entrants.
        prompts: C conversations.
        responses: N lists of C texts.
        truncated: whether each was cut at the limit of tokens, bool [N, C].
    """

    names: list[str]
    prompts: Sequence[Conversation]
    responses: list[list[str]]
    truncated: NDArray[np.bool_]

    @property
    def num_prompts(self) -> int:
        """C."""
        return len(self.prompts)

    @property
    def lengths(self) -> NDArray[np.float64]:
        """Characters of each response [C, N]."""
        return np.array([[len(text) for text in own] for own in self.responses], float).T

    def question(self, prompt: int, one: int, other: int) -> Question | None:
        """The question about two entrants' answers; None where these are equal."""
        first, second = self.responses[one][prompt], self.responses[other][prompt]
        if first == second:
            return None
        cut = bool(self.truncated[one, prompt]), bool(self.truncated[other, prompt])
        return Question(self.prompts[prompt], first, second, *cut)


def read_entrants(given: Sequence[str]) -> list[Entrant]:
    """The entrants of a command line, NAME=SOURCE or SOURCE, which is its own name.

    Raises:
        UserError: there is one alone, two have one name, a name or a source is empty, or a file of
            answers is not there.
    """
    entrants = []
    for word in given:
        name, equals, source = word.partition("=")
        entrants.append(Entrant(name, source) if equals else Entrant(word, word))
        if not entrants[-1].name.strip() or not entrants[-1].source.strip():
            raise UserError(f"{word!r} is no entrant: write NAME=SOURCE or SOURCE")
    if len(entrants) < 2:
        who = f"there is {entrants[0].name!r} alone" if entrants else "there is none"
        raise UserError(f"a tournament takes two entrants at least, and {who}: name another one")
    names = [entrant.name for entrant in entrants]
    for entrant in entrants:
        if names.count(entrant.name) > 1:
            raise UserError(
                f"two entrants have the name {entrant.name!r}: write NAME={entrant.source} for one"
            )
        if entrant.is_answers and not Path(entrant.source).is_file():
            raise UserError(f"there is no file {entrant.source} of answers")
    return entrants


def read_tournament_prompts(path: str, num: int | None = None) -> Prompts:
    """The prompts of a file, or the first ``num``, all different.

    Raises:
        UserError: the file cannot be read, is empty, has fewer, or has a prompt twice.
    """
    prompts = prompts_from(path, num)
    lines: dict[str, int] = {}
    for number, talk in enumerate(conversations(prompts, "the tournament")):
        before = lines.setdefault(conversation_key(talk), number)
        if before != number:
            raise UserError(
                f"{entry_of(path, number)} has the prompt of {entry_of(path, before)} again: leave "
                "one of them out"
            )
    return prompts


@dataclass(frozen=True, slots=True)
class Answers:
    """What one entrant answers to each of C prompts.

    Args:
        texts: C.
        truncated: whether each was cut at the limit of tokens, C.
        others: answers to other prompts, which are left out.
    """

    texts: list[str]
    truncated: list[bool]
    others: int = 0


def read_answers(path: str | Path, prompts: Sequence[Conversation]) -> Answers:
    """The answer to each prompt in a file; `nlhf sample` writes such files, with ``truncated``.

    Raises:
        UserError: the file cannot be read, answers a prompt twice, or leaves one out.
    """
    answers: dict[str, tuple[int, str, bool]] = {}
    for row in read_lines(path, _EXAMPLE):
        for column in ("prompt", "response"):
            if column not in row.values:
                raise row.error(f"has no {column}: write objects such as {_EXAMPLE}")
        talk = as_conversation(checked_prompt(row, row.values["prompt"], "prompt"))
        before, text = checked_response(row, row.values["response"], "response")
        if before is not None:
            raise row.error("has a list of messages as 'response': write the text of the answer")
        cut = row.values.get("truncated", False)
        if not isinstance(cut, bool):
            raise row.error("has 'truncated' that is neither true nor false: write one of them")
        number, *_ = answers.setdefault(conversation_key(talk), (row.number, text, cut))
        if number != row.number:
            raise row.error(f"answers the prompt of {line_of(path, number)} again: leave one out")
    keys = [conversation_key(talk) for talk in prompts]
    for talk, key in zip(prompts, keys, strict=True):
        if key not in answers:
            prompt = json.dumps(talk[-1]["content"][:60], ensure_ascii=False)
            raise UserError(f"{path} has no answer to the prompt {prompt}: give one to each")
    found = [answers[key] for key in keys]
    others = len(answers) - len({*keys})
    return Answers([text for _, text, _ in found], [cut for *_, cut in found], others)
