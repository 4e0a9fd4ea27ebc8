"""Answers that were paid for once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

from typing_extensions import override

from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.oracles.wrappers.answer_store import AnswerStore, Remembered
from nlhf_zoo.oracles.wrappers.base import WrappedTextOracle


@final
class CachedOracle(WrappedTextOracle):
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

    may_change_on_resume = frozenset({"path"})

    def __init__(self, oracle: TextOracle, path: str | Path) -> None:
        super().__init__(oracle)
        # Once, and first: an oracle without one is refused before it is paid.
        self._fingerprint = oracle.fingerprint
        self.store = AnswerStore(path)

    @property
    @override
    def fingerprint(self) -> str:
        """The other oracle's, as it was when this one was made."""
        return self._fingerprint

    @override
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
                yield number, known[names[number]].to(questions[number].is_ascending)
            misses = [number for number, name in enumerate(names) if name not in known]
            if not misses:
                return
            for place, answer in self.oracle.answers([questions[number] for number in misses]):
                number = misses[place]
                if 0 <= answer <= 1:  # and not NaN, for no answer
                    ascending = questions[number].is_ascending
                    answer = store.keep(names[number], Remembered(answer, ascending)).to(ascending)
                yield number, answer
