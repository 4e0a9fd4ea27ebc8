"""Batches that a server was asked: each is put to the oracle once, however often it arrives."""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from nlhf_zoo.errors import OracleStoppedError, UserError, cause
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.ledger import FIELDS, ledgers
from nlhf_zoo.oracles.served.description import asked_by_question
from nlhf_zoo.oracles.served.protocol import (
    KEPT,
    Kind,
    actions_of_json,
    decoded,
    encoded,
    questions_of_json,
)
from nlhf_zoo.oracles.text_oracle import Answer, Question, last_words
from nlhf_zoo.records import Comparison, Prompts, Responses

ENDING = "its server is ending"
_THREADS = 64  # batches at once, of an oracle that waits for another server
_MOST_OPEN = 1024  # batches that are not answered
_ASKING = ("queries", "swapped", "requests")  # what is counted before something is asked
# P(first > second) of a question by its number, None without an answer, and why there is none.
_Entry = tuple[int, float | None, str]


@dataclass(eq=False)
class AskedBatch:
    """What one batch asks for, and what has come of it."""

    kind: Kind
    ask: Callable[[AskedBatch], None]  # puts it to the oracle
    answers: list[_Entry] = field(default_factory=list)  # only ever grows
    tensors: dict[str, Any] = field(default_factory=dict)  # of a table, as they are sent
    cost: Counter[str] = field(default_factory=Counter)  # by the fields of a ledger
    stopped: str = ""  # why the oracle cannot be asked any more
    refused: str = ""  # what it refuses
    ended: float | None = None  # when, on the monotonic clock
    future: Future[None] | None = None  # done when it is answered
    fetched: bool = False  # whether the end of it was said to anybody

    def reply(self, have: int) -> dict[str, Any]:
        """What there is to say: of answers those behind the first ``have``."""
        if self.ended is None:
            return {"done": False, "answers": self.answers[have:]}
        self.fetched = True
        return {
            "done": True,
            "answers": self.answers[have:],
            "cost": {name: count for name, count in self.cost.items() if count},
            "stopped": self.stopped,
            "refused": self.refused,
            **self.tensors,
        }


@final
class BatchDesk:
    """Takes batches, puts each to the oracle in a thread, and remembers what came of it.

    Batches are put one after the other, as they come in; of an oracle that waits for a server, many
    at once. A ledger counts in the thread that asks, so that the cost of each batch is known apart.

    Args:
        oracle: who is asked.
    """

    def __init__(self, oracle: PreferenceOracle) -> None:
        self.oracle = oracle
        self.is_ending = False
        self._by_question = asked_by_question(oracle)
        self._here = threading.local()
        self._batches: dict[str, AskedBatch] = {}
        threads = _THREADS if oracle.asks_in_parallel else 1
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="nlhf oracle")
        for ledger in ledgers(oracle).values():
            ledger.gates.append(self._tally)

    def refuse_more(self) -> None:
        """Put no question any more that was not put yet, of batches under way neither."""
        self.is_ending = True
        for ledger in ledgers(self.oracle).values():
            ledger.gates.insert(0, self._refuse)

    def close(self) -> None:
        """Let the threads end, and leave the oracle as it was."""
        for ledger in ledgers(self.oracle).values():
            for gate in (self._refuse, self._tally):
                if gate in ledger.gates:
                    ledger.gates.remove(gate)
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def open_batches(self) -> list[AskedBatch]:
        """Those that are not answered yet."""
        return [batch for batch in self._batches.values() if batch.ended is None]

    @property
    def all_fetched(self) -> bool:
        """Whether the end of each batch was said to somebody."""
        return all(batch.fetched for batch in self._batches.values())

    def take(self, content: Mapping[str, Any]) -> AskedBatch:
        """The batch under the id of a request: the one that is known, or else a new one.

        Raises:
            ValueError: it is no batch.
            LookupError: it is not known, and some of its answers have arrived.
            OracleStoppedError: the server takes no more.
        """
        name = content.get("batch")
        if not isinstance(name, str) or not 16 <= len(name) <= 64:
            raise ValueError("it has no id of 16 to 64 characters")
        self._forget(content.get("received"))
        if name in self._batches:
            return self._batches[name]
        if content.get("have"):  # of answers that another server gave, in another order
            raise LookupError("it remembers no such batch")
        batch = self._made(content)
        if self.is_ending:
            raise OracleStoppedError(ENDING)
        if len(self.open_batches) >= _MOST_OPEN:
            raise OracleStoppedError(f"{_MOST_OPEN} batches wait for its answers already")
        self._batches[name] = batch
        batch.future = self._pool.submit(self._put, batch)
        return batch

    def _forget(self, received: object) -> None:
        """Drop batches whose answers have arrived, and those that nobody has asked for any more."""
        names = received if isinstance(received, list) else []
        old = time.monotonic() - KEPT
        for name, batch in [*self._batches.items()]:
            if batch.ended is not None and (name in names or batch.ended < old):
                del self._batches[name]

    # ---- what is asked ----

    def _made(self, content: Mapping[str, Any]) -> AskedBatch:
        kind = content.get("kind")
        support = self.oracle.support
        if kind == "questions" and support is None:
            questions = questions_of_json(content)
            as_shown = content.get("in_given_order") is True
            return AskedBatch(kind, lambda batch: self._answer(batch, questions, as_shown))
        if kind == "table" and support is not None:
            return AskedBatch(kind, self._read_table)
        if kind in ("comparisons", "products") and support is not None:
            ids = decoded(content.get("prompts"), ["int64"], 1)
            num_prompts, num_actions = support.shape
            if not bool(((ids >= 0) & (ids < num_prompts)).all()):
                raise ValueError("prompts that there are not")
            prompts = Prompts(ids).to(support.device)
            both = [
                actions_of_json(content.get(side), len(ids), num_actions).to(support.device)
                for side in ("first", "second")
            ]
            return AskedBatch(kind, lambda batch: self._look_up(batch, prompts, *both))
        raise ValueError(f"{self.oracle_name} is not asked for {str(kind)[:20]!r}")

    @property
    def oracle_name(self) -> str:
        """Of its class."""
        return type(self.oracle).__name__

    def _answer(self, batch: AskedBatch, questions: Sequence[Question], as_shown: bool) -> None:
        began = time.perf_counter()
        asked = self._by_question
        stream = (
            self._compared(questions)
            if asked is None
            else (asked.in_given_order if as_shown else asked.answers)(questions)
        )
        invalid = 0
        try:
            for number, answer in stream:
                if math.isnan(answer):
                    invalid += 1
                    words = last_words(self.oracle).removeprefix("; its last words: ")
                    batch.answers.append((number, None, words))
                else:
                    batch.answers.append((number, answer, ""))
        finally:
            if asked is not None:  # else its members have counted
                asked.ledger.charge(
                    invalid=invalid, microseconds=int(1e6 * (time.perf_counter() - began))
                )

    def _compared(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """The answers of several oracles together: each pair as a prompt with a response a side."""
        if not questions:
            return
        talks = [question.conversation for question in questions]
        prompts = Prompts(
            torch.arange(len(questions)),
            text=[question.prompt for question in questions],
            conversations=talks,
        )
        firsts = [(question.first, question.first_truncated) for question in questions]
        seconds = [(question.second, question.second_truncated) for question in questions]
        comparison: Comparison = self.oracle(prompts, _written(firsts), _written(seconds))
        answers = comparison.preference.masked_fill(~comparison.valid, math.nan)
        yield from enumerate(answers.double().flatten().tolist())

    def _look_up(
        self, batch: AskedBatch, prompts: Prompts, first: Responses, second: Responses
    ) -> None:
        if batch.kind == "products":
            preference, valid = self.oracle.expected(prompts, first, second)
        else:
            comparison: Comparison = self.oracle(prompts, first, second)
            preference, valid = comparison.preference, comparison.valid
        batch.tensors = {"preference": encoded(preference), "valid": _unless_all(valid)}

    def _read_table(self, batch: AskedBatch) -> None:
        table = self.oracle.table
        batch.tensors = {"table": None if table is None else encoded(table)}

    # ---- in a thread of the pool ----

    @torch.no_grad()
    def _put(self, batch: AskedBatch) -> None:
        self._here.cost = batch.cost
        try:
            batch.ask(batch)
        except OracleStoppedError as error:
            batch.stopped = str(error)
        except UserError as error:
            batch.refused = str(error)
        except Exception as error:  # of somebody's own oracle, say: the others are served on
            traceback.print_exc(file=sys.stderr)
            batch.stopped = f"its server has met {type(error).__name__}, {cause(error)}"
        finally:
            del self._here.cost
            batch.ended = time.monotonic()

    def _tally(self, counts: Mapping[str, int]) -> None:
        """The last gate of each ledger: what is counted belongs to the batch of this thread."""
        cost: Counter[str] | None = getattr(self._here, "cost", None)
        if cost is not None:
            cost.update({name: count for name, count in counts.items() if name in FIELDS})

    def _refuse(self, counts: Mapping[str, int]) -> None:
        """A gate of each ledger when the server is ending."""
        if any(counts.get(name, 0) > 0 for name in _ASKING):
            raise OracleStoppedError(ENDING)


def _written(rows: Sequence[tuple[str, bool]]) -> Responses:
    """A response of text to each of B prompts, [B, 1]."""
    shape = len(rows), 1, 1
    return Responses(
        torch.zeros(shape, dtype=torch.long),
        torch.ones(shape, dtype=torch.bool),
        torch.ones(shape[:2], dtype=torch.float64),
        text=[[text] for text, _ in rows],
        truncated=torch.tensor([[cut] for _, cut in rows]),
    )


def _unless_all(valid: Tensor) -> dict[str, Any] | None:
    """Validity as it is sent; None where all are valid."""
    return None if bool(valid.all()) else encoded(valid)
