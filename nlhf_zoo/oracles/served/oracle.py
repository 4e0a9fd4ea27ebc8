"""An oracle of texts that stands behind a server."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.ledger import FIELDS, Ledger
from nlhf_zoo.oracles.served.address import TokenSource
from nlhf_zoo.oracles.served.client import ServedClient
from nlhf_zoo.oracles.served.protocol import LONGEST_BODY, Description, questions_to_json
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle

REACHED = frozenset({"url", "token_env", "token_file", "timeout", "patience"})
_CHARACTERS = LONGEST_BODY // 16  # of the texts of a batch: each may be written as twelve bytes
_QUESTIONS = 4096  # of a batch


class ServedPart(PreferenceOracle):
    """What oracles behind a server share: who is asked, and that it stays the same one."""

    asks_in_parallel = True  # the server puts one question after another where it must
    may_change_on_resume = REACHED

    served: Tensor  # digest of the served oracle's fingerprint, uint8 [16]; checkpoints hold it

    def _reach(
        self,
        url: str,
        token_env: str | None,
        token_file: str | None,
        timeout: float,
        patience: float,
    ) -> Description:
        """Read what the server says of its oracle."""
        token = TokenSource(token_env or None, token_file or None)
        self.client = ServedClient(url, token, timeout, patience)
        self.description = description = self.client.describe()
        self.tolerance = description.tolerance
        digest = hashlib.blake2b(description.fingerprint.encode(), digest_size=16).digest()
        self.register_buffer("served", torch.tensor([*digest], dtype=torch.uint8))
        return description

    @property
    def fingerprint(self) -> str:
        """The served oracle's own: what a cache remembers of one it may use of the other."""
        return self.description.fingerprint

    @override
    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *others: Any
    ) -> None:
        """Refuse a checkpoint of a run that asked another oracle.

        Raises:
            UserError: it is another.
        """
        kept = state_dict.get(f"{prefix}served")
        if kept is not None and not torch.equal(kept.cpu(), self.served.cpu()):
            raise UserError(
                f"the checkpoint's run asked another oracle than the {self.description.oracle} "
                f"that is served at {self.client.url}: serve that one again, or start afresh "
                "without ckpt_path"
            )
        super()._load_from_state_dict(state_dict, prefix, *others)


@final
class ServedOracle(ServedPart, TextOracle):
    """An oracle of texts behind the server that `nlhf serve-oracle` runs.

    It answers as the served one does, and has its fingerprint. Questions go out in batches of 4,096
    at most. What the served oracle was really asked for them, swapped calls and tokens among it, is
    in this ledger when a batch is answered; until then the questions are counted as they are.

    The texts leave this machine for the server at `url`. An attempt that fails on its way is made
    again: the server asks and counts no batch twice.

    Args:
        url: of the server, http://127.0.0.1:8765 for instance.
        token_env: environment variable that holds its token; null for a server without one.
        token_file: file that holds the token, in the place of a variable.
        timeout: seconds for a whole request; the server says within ten what it has.
        patience: seconds without any reply after which the server is taken for down, and the run
            ends with a checkpoint. How long the oracle itself may take is not limited.

    Raises:
        UserError: there is no such server, the token is not its own, or it serves a table.
    """

    def __init__(
        self,
        url: str,
        token_env: str | None = None,
        token_file: str | None = None,
        timeout: float = 60.0,
        patience: float = 300.0,
    ) -> None:
        super().__init__()
        description = self._reach(url, token_env, token_file, timeout, patience)
        if description.is_table:
            raise UserError(
                f"the oracle at {url}, {description.oracle}, is over a table and reads no texts: "
                "put ServedTable in the place of ServedOracle"
            )
        self.symmetric = description.symmetric
        self.reads_truncated = description.reads_truncated
        self._last_error = ""

    @property
    @override
    def last_error(self) -> str:
        """Why the served oracle had no answer when it last had none."""
        return self._last_error

    @override
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Ask the server, batch by batch.

        Raises:
            OracleStoppedError: the server is down or serves another oracle, the served oracle has
                stopped, or a budget is spent.
            UserError: the served oracle refuses the questions.
        """
        return self._asked(questions, in_given_order=False)

    @override
    def in_given_order(self, questions: Sequence[Question]) -> Iterator[Answer]:
        return self._asked(questions, in_given_order=True)

    def _asked(self, questions: Sequence[Question], in_given_order: bool) -> Iterator[Answer]:
        for begin, end in _batches(questions):
            asked, stopped = self.admitted(questions[begin:end])
            if asked:
                for number, answer in self._batch(asked, in_given_order):
                    yield begin + number, answer
            if stopped is not None:
                raise stopped

    def _batch(self, asked: Sequence[Question], in_given_order: bool) -> Iterator[Answer]:
        content = {**questions_to_json(asked), "in_given_order": in_given_order}
        again = sum(question.again for question in asked)
        counted, known = Counter(queries=len(asked) - again, swapped=again), set[int]()
        for reply in self.client.ask("questions", self.fingerprint, content):
            for number, answer, why in _entries(reply, len(asked), self.client.url):
                if number in known:  # by a server that was started again
                    continue
                known.add(number)
                if math.isnan(answer):
                    counted["invalid"] += 1  # by who reads these answers
                    self._last_error = why
                yield number, answer
        settle(self.ledger, counted, reply)
        end_if_stopped(reply, self.client.url)


def settle(ledger: Ledger, counted: Mapping[str, int], reply: Mapping[str, Any]) -> None:
    """Put what a batch has cost in the place of what was counted of it before.

    Time is the asker's own: that of several askers passes at once.
    """
    cost = reply.get("cost")
    said = cost if isinstance(cost, dict) else {}
    changes = {}
    for name in FIELDS:
        count = said.get(name, 0)
        if name != "microseconds" and isinstance(count, int):
            changes[name] = count - counted.get(name, 0)
    ledger.correct(**{name: change for name, change in changes.items() if change})


def end_if_stopped(reply: Mapping[str, Any], url: str) -> None:
    """Raise what the served oracle has raised.

    Raises:
        OracleStoppedError: it has stopped.
        UserError: it refuses what was asked.
    """
    if stopped := reply.get("stopped"):
        raise OracleStoppedError(f"the oracle that is served at {url} has stopped: {stopped}")
    if refused := reply.get("refused"):
        raise UserError(f"the oracle that is served at {url} refuses: {refused}")


def _entries(reply: Mapping[str, Any], num: int, url: str) -> Iterator[tuple[int, float, str]]:
    """Numbers of questions with their answers, NaN where there is none, and why there is none."""
    for entry in reply["answers"]:
        match entry:
            case [int(number), None, str(why)] if 0 <= number < num:
                yield number, math.nan, why
            case [int(number), int() | float() as answer, str()] if (
                0 <= number < num and 0 <= answer <= 1
            ):
                yield number, float(answer), ""
            case _:
                raise OracleStoppedError(
                    f"the server at {url} gives what is no answer to a question: see that it is "
                    "one of `nlhf serve-oracle`, and go on"
                )


def _batches(questions: Sequence[Question]) -> Iterator[tuple[int, int]]:
    """Where batches begin and end: as long as a request may be, and no longer."""
    begin, size, talks = 0, 0, set[str]()
    for number, question in enumerate(questions):
        key = question.prompt_key
        more = len(question.first) + len(question.second) + len(key) * (key not in talks)
        if number > begin and (number - begin == _QUESTIONS or size + more > _CHARACTERS):
            yield begin, number
            begin, size, talks = number, 0, set()
            more = len(question.first) + len(question.second) + len(key)
        size += more
        talks.add(key)
    if questions:
        yield begin, len(questions)
