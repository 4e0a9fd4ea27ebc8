"""What people are asked and what they say: pairs, tallies, votes. Plain records."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, get_args

from nlhf_zoo.errors import UserError, shown

Choice = Literal["first", "second", "neither", "skip"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
_LONGEST_NAME = 80


class VoteRefusedError(UserError):
    """A vote that cannot be kept, however often it is sent."""


@dataclass(frozen=True)
class Pair:
    """A prompt and two responses to it, as they are shown.

    Args:
        conversation: messages, each with ``role`` and ``content``; the last is answered.
        first: a response.
        second: another.
    """

    conversation: Sequence[Mapping[str, str]]
    first: str
    second: str

    @cached_property
    def prompt(self) -> str:
        """The conversation as JSON, which no other conversation has: [[role, content], ...]."""
        said = [[one["role"], one["content"]] for one in self.conversation]
        return json.dumps(said, ensure_ascii=False)

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that no other pair has; the same in either order of the responses."""
        texts = [self.prompt, *sorted((self.first, self.second))]
        written = json.dumps(texts).encode()
        return hashlib.blake2b(written, digest_size=16).digest()


def conversation_of(prompt: str) -> list[dict[str, str]]:
    """The messages of what `Pair.prompt` has made of them."""
    return [{"role": role, "content": content} for role, content in json.loads(prompt)]


@dataclass(frozen=True, slots=True)
class Tally:
    """What was said of a question; first and second as the file has them.

    Args:
        first: votes for the first response.
        second: for the second.
        neither: for no difference.
        skipped: how many people passed.
        wanted: how many votes are wanted.
    """

    first: int
    second: int
    neither: int
    skipped: int
    wanted: int

    @property
    def votes(self) -> int:
        """How many count."""
        return self.first + self.second + self.neither


@dataclass(frozen=True, slots=True)
class Found:
    """A question about a pair.

    Args:
        number: of the question.
        same_order: whether the file has the responses in the order of the pair.
    """

    number: int
    same_order: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """A question as one person sees it.

    Args:
        number: of the question.
        pair: as the file has it.
        mirrored: whether the second response has the first seat.
    """

    number: int
    pair: Pair
    mirrored: bool

    @property
    def seats(self) -> tuple[str, str]:
        """The responses as they are seated."""
        texts = (self.pair.first, self.pair.second)
        return texts[::-1] if self.mirrored else texts


@dataclass(frozen=True, slots=True)
class Vote:
    """A vote as it is kept.

    Args:
        number: of the vote, in the order in which they came.
        question: its number.
        person: who gave it.
        choice: first and second as the file has them.
        seconds: for which the pair was looked at; None where nobody measured.
        time: when it came, seconds of Unix time.
        mirrored: whether the second response had the first seat.
        undone: when it was taken back, None for one that counts.
    """

    number: int
    question: int
    person: str
    choice: Choice
    seconds: float | None
    time: float
    mirrored: bool
    undone: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far people are.

    Args:
        questions: all.
        open: those that are shown still.
        answered: those with as many votes as are wanted.
        missing: votes that the open ones want still.
        votes: of each person, without what was skipped.
        seconds: the median of the last votes; None where there is none yet.
    """

    questions: int
    open: int
    answered: int
    missing: int
    votes: Mapping[str, int]
    seconds: float | None


@lru_cache(maxsize=4096)
def checked_person(name: str) -> str:
    """A person's name as the file keeps it, without space around it, in Unicode's composed form.

    Raises:
        UserError: it is empty, too long, or holds what is no printable character.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise UserError(
            f"{shown(name)} is no name of a person: give one to {_LONGEST_NAME} printable "
            "characters"
        )
    return name
