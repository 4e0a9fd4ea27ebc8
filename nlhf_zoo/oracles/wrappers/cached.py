"""Answers that were paid for once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.oracles.wrappers.answer_store import AnswerStore, OpenStore, Remembered


@final
class CachedOracle(TextOracle):
    """Another oracle's answers, each remembered in a file: no question is paid for twice.

    An answer belongs to the oracle's fingerprint (model, template, options), the prompt and both
    texts. It is on the disk before it is handed on, so that no answer is lost to a run that is
    killed. Answers that could not be had are not remembered: they are asked for again. Several
    processes may share the file, on a disk of their own machine.

    Args:
        oracle: who is asked what is not remembered.
        path: the file, an SQLite database; made if it is not there, in a folder that is.

    Raises:
        UserError: the file cannot be used, or the oracle's answers cannot be remembered.
    """

    def __init__(self, oracle: TextOracle, path: str | Path) -> None:
        super().__init__()
        # Once, and first: an oracle without one is refused before it is paid.
        self._fingerprint = oracle.fingerprint
        self.oracle = oracle
        self.store = AnswerStore(path)
        self.symmetric = oracle.symmetric
        self.reads_truncated = oracle.reads_truncated
        self.tolerance = oracle.tolerance

    @property
    def fingerprint(self) -> str:
        """The other oracle's, as it was when this one was made."""
        return self._fingerprint

    def as_shown(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """The other oracle's, not remembered."""
        return self.oracle.as_shown(questions)

    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Remembered answers first, then the other oracle's as they come.

        Raises:
            UserError: the file cannot be used.
            OracleStoppedError: the file, or the other oracle, cannot be used any more.
        """
        ordered = not self.symmetric
        names = [question.digest(self._fingerprint, ordered) for question in questions]
        with self.store.opened() as store:
            known = store.find(names)
            hits = [number for number, name in enumerate(names) if name in known]
            self.ledger.charge(cache_hits=len(hits))
            for number in hits:
                yield number, known[names[number]].to(_ascending(questions[number]))
            misses = [number for number, name in enumerate(names) if name not in known]
            if not misses:
                return
            for place, answer in self.oracle.answers([questions[number] for number in misses]):
                number = misses[place]
                yield number, _kept(store, names[number], questions[number], answer)


def _kept(store: OpenStore, name: bytes, question: Question, answer: float) -> float:
    """The answer as it is remembered; what is no probability (NaN: no answer) is not."""
    if not 0 <= answer <= 1:
        return answer
    ascending = _ascending(question)
    return store.keep(name, Remembered(answer, ascending)).to(ascending)


def _ascending(question: Question) -> bool:
    """Whether the first response is the lesser one: of the two orders, one is and one is not."""
    return (question.first, question.first_truncated) < (question.second, question.second_truncated)
