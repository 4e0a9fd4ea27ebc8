"""People as the oracle: they vote on a page, and a run waits for them or trains on meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import final

from typing_extensions import override

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles.human.votes import answered, preference
from nlhf_zoo.oracles.human.waiting import Waiting
from nlhf_zoo.oracles.text_oracle import Answer, Question, TextOracle
from nlhf_zoo.people import Found, Pair, Tally, VoteStore
from nlhf_zoo.records import Prompts, Responses

NAME = "people.sqlite"  # in the folder of a run's checkpoints
_Asked = tuple[int, Found]  # the place of a question among others, and where it stands in the file


@final
class HumanOracle(TextOracle):
    r"""P(first > second | prompt) as people vote, who are shown pairs by `nlhf ask`.

    .. math:: P(y \succ y') = \frac{v + n / 2}{v + v' + n}

    of v votes for y, v' for y' and n for no difference. A pair that everyone skipped is invalid.

    Questions stand in a file, and so do votes, as soon as they are given: a run that is killed
    loses none, and one that goes on, or another one that asks about the same texts, asks nothing
    twice. Several processes may share the file, on a disk of their own machine.

    Args:
        path: the file, an SQLite database; made if it is not there. Null is `people.sqlite` beside
            the checkpoints of the run.
        votes: of different people, that each pair is to have.
        wait: wait for the votes whenever they are needed. With false the next rollout is drawn and
            put to people while the one that they have judged is trained on, and passed over for
            longer than model.rollout.epochs where they need longer.
        timeout: seconds without a vote after which a run that waits ends, with a checkpoint; null
            waits for ever.

    Raises:
        UserError: a number is out of its range, or the file cannot be used.
    """

    asks_in_parallel = True  # it waits for people, and each call for its own questions
    draws_answers = True  # a vote is one, with the preference of all people as its mean
    may_change_on_resume = frozenset({"path", "wait", "timeout"})

    def __init__(
        self,
        path: str | Path | None = None,
        votes: int = 1,
        wait: bool = True,
        timeout: float | None = None,
    ) -> None:
        super().__init__()
        if votes < 1:
            raise UserError(f"HumanOracle.votes must be at least 1, but it is {votes}")
        if timeout is not None and not 0 < timeout < math.inf:
            raise UserError(
                f"HumanOracle.timeout must be some seconds, above 0, or null, but it is {timeout}"
            )
        self.path = None if path is None else Path(path).absolute()
        self.votes = votes
        self.wait = wait
        self.timeout = timeout
        self._ahead: set[int] = set()  # numbers of questions that were counted when they were put
        self._skipped: set[int] = set()  # numbers of those of which nobody had an opinion

    def place_in(self, folder: Path) -> None:
        """Keep the votes beside a run's checkpoints, unless a file was given."""
        if self.path is None:
            self.path = (folder / NAME).absolute()

    @property
    def file(self) -> Path:
        """Where the votes are kept.

        Raises:
            UserError: nobody has said where.
        """
        if self.path is None:
            raise UserError(
                "HumanOracle keeps its votes beside the checkpoints of a run, and here are none: "
                "give its path, a file for the votes"
            )
        return self.path

    @property
    @override
    def fingerprint(self) -> str:
        """The file of the votes, wherever it lies, and how many votes are wanted."""
        with self._opened() as store:
            return f"people {store.name}, {self.votes} votes a pair"

    @property
    @override
    def last_error(self) -> str:
        return f"pairs skipped by everyone: {len(self._skipped)}" if self._skipped else ""

    @property
    @override
    def asks_ahead(self) -> bool:
        return not self.wait

    @override
    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Answers of votes that are there, then those of others as they are given.

        Raises:
            OracleStoppedError: nobody votes, a budget is spent, or the file cannot be used.
        """
        try:
            with self._opened() as store:
                asked, stopped = self._put(store, questions)
                yield from self._awaited(store, asked)
        except OracleStoppedError:
            raise
        except UserError as error:  # the disk is full, say
            raise OracleStoppedError(str(error)) from error
        if stopped is not None:
            raise stopped

    @override
    def ask_ahead(
        self, prompts: Prompts, first: Responses, second: Responses
    ) -> Callable[[], bool]:
        questions, _ = self.questions(prompts, first, second)
        with self._opened() as store:
            # Where a budget ends that is said when the answers are wanted.
            asked, _ = self._put(store, questions, ahead=True)
        return partial(self._are_answered, asked)

    @contextmanager
    def _opened(self) -> Iterator[VoteStore]:
        """The file of the votes, for as long as some questions take.

        Raises:
            UserError: there is none, or it cannot be used.
        """
        store = VoteStore(self.file)
        try:
            yield store
        finally:
            store.end()

    def _put(
        self, store: VoteStore, questions: Sequence[Question], ahead: bool = False
    ) -> tuple[list[_Asked], OracleStoppedError | None]:
        """Put what the file does not hold, counted before, as far as a budget allows.

        Returns:
            what may be waited for, and what stopped the rest.
        """
        pairs = [Pair(asked.conversation, asked.first, asked.second) for asked in questions]
        known = store.find(pairs)
        # Each once: who looks at a pair in both orders asks people nothing more.
        fresh = {pair.digest: n for n, pair in reversed([*enumerate(pairs)]) if known[n] is None}
        order = sorted(fresh.values())
        admitted, stopped = self.admitted([questions[place] for place in order])
        left_out = {pairs[place].digest for place in order[len(admitted) :]}
        places = [place for place, pair in enumerate(pairs) if pair.digest not in left_out]
        pairs = [pairs[place] for place in places]
        # One after the other of each process: all of them are done at about the same time.
        numbers = store.put(pairs, self.votes, [-float(turn) for turn in range(len(pairs))])
        before = {found.number for found in known if found is not None}
        self.ledger.charge(cache_hits=len(before - self._ahead))
        self._ahead -= before
        if ahead:
            self._ahead |= {*numbers}
        asked = zip(places, store.find(pairs), strict=True)
        return [(place, found) for place, found in asked if found is not None], stopped

    def _awaited(self, store: VoteStore, asked: Sequence[_Asked]) -> Iterator[Answer]:
        """Answers as soon as the votes are there.

        Raises:
            OracleStoppedError: nobody has voted for too long.
        """
        waiting = [*asked]
        with Waiting(store, len(asked), self.timeout) as people:
            while waiting:
                looked_at = [*zip(waiting, self._looked_at(store, waiting), strict=True)]
                for (place, found), tally in looked_at:
                    if tally is not None:
                        yield place, self._answer(found, tally)
                waiting = [one for one, tally in looked_at if tally is None]
                if waiting:
                    people.await_votes(len(waiting))

    def _looked_at(self, store: VoteStore, asked: Sequence[_Asked]) -> list[Tally | None]:
        """The votes of each question; None of one that waits for more."""
        tallies = store.tallies([found.number for _, found in asked])
        people = sum(votes > 0 for votes in store.progress().votes.values())
        done = answered(tallies, self.votes, people)
        return [tally if one else None for tally, one in zip(tallies, done, strict=True)]

    def _answer(self, found: Found, tally: Tally) -> float:
        """P(first > second) of a question whose votes are there."""
        probability = preference(tally)
        if math.isnan(probability):
            self._skipped.add(found.number)
        return probability if found.same_order else 1 - probability

    def _are_answered(self, asked: Sequence[_Asked]) -> bool:
        with self._opened() as store:
            return None not in self._looked_at(store, asked)
