"""What the page asks and is answered, as JSON; docs/people.md describes it.

Each request is one transaction: a vote is kept and the next question taken, or neither.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, final

from nlhf_zoo.errors import UserError
from nlhf_zoo.people.agreement import agreement
from nlhf_zoo.people.pairs import CHOICES, Shown, checked_person
from nlhf_zoo.people.store import VoteStore

_LONGEST_WAIT = 25.0  # seconds
_LOOK = 1.0  # seconds after which a lease of another may have run out
_FRESH = 20.0  # seconds for which an agreement that was computed is shown
_PACE = 1.0  # seconds for which a pace that was computed is shown
_COUNTS = ("questions", "open", "answered", "missing")
_MOST_BESIDES = 8


class RequestError(Exception):
    """A request that is none of this interface."""


@final
class PeopleAPI:
    """The answers to requests.

    Args:
        store: the questions and votes.
    """

    def __init__(self, store: VoteStore) -> None:
        self.store = store
        self._news = threading.Condition()
        self._has_ended = False
        self._pace: tuple[float, dict[str, Any]] = (-math.inf, {})
        self._agreement: tuple[float, int, dict[str, Any]] | None = None
        self.routes: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "/api/next": self.next,
            "/api/vote": self.vote,
            "/api/undo": self.undo,
            "/api/agreement": self.agreement,
        }

    def next(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The next question of a person, for which it waits where there is none."""
        person, besides = _person(asked), _besides(asked)
        wait = min(_number(asked, "wait", 0.0), _LONGEST_WAIT)
        end = time.monotonic() + wait
        while True:
            with self._news:
                answer = self._answer(person, besides)
                left = end - time.monotonic()
                if answer["pair"] or left <= 0 or self._has_ended:
                    more = {"last": self.store.last(person), "file": self.store.name}
                    return answer | more
                self._news.wait(min(left, _LOOK))

    def vote(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a vote; the next question."""
        person, besides = _person(asked), _besides(asked)
        number, choice = _whole(asked, "number"), asked.get("choice")
        if choice not in CHOICES:
            raise RequestError(f"choice is one of {', '.join(CHOICES)}")
        seconds = _number(asked, "seconds", 0.0) if "seconds" in asked else None
        with self.store.transaction():
            self.store.vote(person, number, choice, seconds, is_seated=True)
            return self._answer(person, besides)

    def undo(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Take a person's last vote back; its question."""
        person, number = _person(asked), _whole(asked, "number")
        with self.store.transaction():
            undone = self.store.undo(person, number)
            pair = None if undone is None else as_seated(self.store.shown(person, undone))
            last = self.store.last(person)
        self.tell()
        return {"undone": undone, "pair": pair, "last": last, "progress": self._progress()}

    def agreement(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """How far people agree, as of some seconds ago at most."""
        now, version = time.monotonic(), self.store.version()
        kept = self._agreement
        if kept is None or (kept[1] != version and kept[0] + _FRESH < now):
            found = agreement(self.store.votes())
            shown = {
                "alpha": found.alpha,
                "questions": found.questions,
                "people": dict(found.people),
            }
            kept = self._agreement = (now, version, shown)
        return kept[2]

    def tell(self) -> None:
        """Let those who wait look again: something was written."""
        with self._news:
            self._news.notify_all()

    def end(self) -> None:
        """Let nobody wait any more."""
        self._has_ended = True
        self.tell()

    def _answer(self, person: str, besides: list[int]) -> dict[str, Any]:
        shown = self.store.next(person, besides)
        pair = None if shown is None else as_seated(shown)
        return {"pair": pair, "progress": self._progress()}

    def _progress(self) -> dict[str, Any]:
        """How far people are: counts of now, the pace and each person's votes as of just before."""
        now = time.monotonic()
        if now > self._pace[0]:
            progress = self.store.progress()
            self._pace = (now + _PACE, {"votes": progress.votes, "seconds": progress.seconds})
        return dict(zip(_COUNTS, self.store.counts(), strict=True)) | self._pace[1]


def as_seated(shown: Shown) -> dict[str, Any]:
    """A question as it is sent: what has which seat stands in the order of the responses."""
    return {
        "number": shown.number,
        "conversation": shown.pair.conversation,
        "responses": shown.seats,
    }


def read(body: bytes, name: str) -> Mapping[str, Any]:
    """The object that a request holds.

    Args:
        body: JSON.
        name: of the file; a request that names another is none for this one.

    Raises:
        RequestError: it is no object, or of another file.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError("the body is no JSON") from None
    if not isinstance(asked, dict):
        raise RequestError("the body is no object")
    if asked.get("file", name) != name:
        raise RequestError("these votes are of another file than the one that is served here")
    return asked


def _person(asked: Mapping[str, Any]) -> str:
    person = asked.get("person")
    if not isinstance(person, str):
        raise RequestError("person is the name of who answers, a text")
    try:
        return checked_person(person)
    except UserError as error:
        raise RequestError(str(error)) from None


def _besides(asked: Mapping[str, Any]) -> list[int]:
    besides = asked.get("besides", [])
    if not isinstance(besides, list) or len(besides) > _MOST_BESIDES:
        raise RequestError(f"besides is a list of up to {_MOST_BESIDES} numbers of questions")
    if any(type(one) is not int for one in besides):
        raise RequestError("besides holds numbers of questions")
    return besides


def _whole(asked: Mapping[str, Any], name: str) -> int:
    value = asked.get(name)
    if type(value) is not int or not 0 < value < 2**63:
        raise RequestError(f"{name} is the number of a question")
    return value


def _number(asked: Mapping[str, Any], name: str, default: float) -> float:
    value = asked.get(name, default)
    if type(value) not in (int, float) or not 0 <= value < 1e9:
        raise RequestError(f"{name} is a number of seconds")
    return float(value)
