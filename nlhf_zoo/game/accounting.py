"""What an oracle was asked, added up over all processes, and what ends the asking."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

import lightning as L

from nlhf_zoo.errors import OracleStoppedError, StoppedElsewhereError
from nlhf_zoo.game.lightning_internals import trainer_of
from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.metrics.processes import counts_of_each, summed
from nlhf_zoo.oracles.base import PreferenceOracle
from nlhf_zoo.oracles.ledger import FIELDS, ledgers
from nlhf_zoo.oracles.text_oracle import last_words
from nlhf_zoo.signals import ENDING, SignalWatch, StoppedBySignal

_T = TypeVar("_T")
_STEPS = 20  # training steps that the share of invalid answers is taken over


@dataclass(slots=True)
class Progress:
    """Where the game stands; all of it survives a resume."""

    round: int = 0  # rounds that are finished
    step: int = 0  # proximal steps that are finished in this round
    gradient_step: int = 0  # gradient steps that are finished in this proximal step
    batches: int = 0  # training steps that this process has played
    queries: int = 0  # preference queries of all processes
    queries_per_prompt: int = 0  # of each prompt of a batch, as algorithms are compared by
    invalid: int = 0  # answers of the oracle that could not be had
    unjudged: int = 0  # prompts that left the loss because none of their answers was valid
    tokens: int = 0  # that all processes have drawn, of scored responses and of opponents
    rollouts: int = 0  # that were drawn to serve several gradient steps
    epoch: int = 0  # passes over such a rollout that are finished in this proximal step
    minibatch: int = 0  # training steps that are finished in this pass
    extra_epochs: int = 0  # passes beyond those planned, while people answered the next rollout
    # Where the stream of prompts stood when its rounds got their present shape, see `data.stream`.
    stream: list[int] = field(default_factory=list)


@dataclass
class Accounts:
    """Counts queries, tokens and invalid answers of all processes."""

    oracle: PreferenceOracle
    each: Callable[[Sequence[int]], list[list[int]]]  # numbers of each process; all of them call
    max_invalid: float
    before_stop: Callable[[], None] | None = None
    signals: SignalWatch = field(default_factory=SignalWatch)  # asking is where they end a run
    # Answers, invalid ones among them, and how many training steps were taken on them.
    _recent: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=_STEPS))

    def reduce(self, numbers: Sequence[int]) -> list[int]:
        """Sums of numbers that each process has; all of them call this alike."""
        return summed(self.each(numbers))

    @property
    def _steps(self) -> int:
        """Training steps on the answers that are looked at."""
        return sum(steps for _, _, steps in self._recent)

    def unless_stopped(self, ask: Callable[[], _T]) -> _T:
        """What asking gives.

        Raises:
            OracleStoppedError: the oracle has stopped in this process, or in another one.
            StoppedBySignal: likewise, a signal has come.
        """
        stopped: OracleStoppedError | StoppedBySignal | None = None
        try:
            with self.signals.raising():
                answers = ask()
        except (OracleStoppedError, StoppedBySignal) as error:
            stopped = error
        if (end := self._agreed(stopped)) is not None:
            self.settle_ledgers()
            self.stop(end)
        return answers

    def _agreed(
        self, stopped: OracleStoppedError | StoppedBySignal | None
    ) -> OracleStoppedError | StoppedBySignal | None:
        """What ends all processes, where anything does: a signal before an oracle."""
        here = [isinstance(stopped, StoppedBySignal) and stopped.signum == s for s in ENDING]
        *signals, oracle = self.reduce([*here, isinstance(stopped, OracleStoppedError)])
        for signum, number in zip(ENDING, signals, strict=True):
            if number:
                return StoppedBySignal(signum)
        if oracle and not isinstance(stopped, OracleStoppedError):
            return StoppedElsewhereError("the oracle of another process has stopped")
        return stopped

    def stop(self, error: OracleStoppedError | StoppedBySignal) -> NoReturn:
        """End the run, in all processes; a checkpoint is written first, where one is wanted."""
        if self.before_stop is not None:
            self.before_stop()
        raise error

    def enter(
        self, progress: Progress, payoffs: Payoffs, tokens: int, first_batch: bool, steps: int = 1
    ) -> None:
        """Count what was drawn and asked for a batch; several may make an optimiser step.

        Args:
            progress: of the game.
            payoffs: what the oracle said.
            tokens: that were drawn.
            first_batch: whether it is the first of an optimiser step.
            steps: training steps that are taken on it.

        Raises:
            OracleStoppedError: too many of the last answers were invalid.
        """
        num = len(payoffs.valid)
        unjudged = num - int(payoffs.valid.any(-1).sum())
        counts = payoffs.invalid, unjudged, tokens, num * payoffs.answers
        answers, invalid = self.count(progress, num, payoffs.queries, first_batch, *counts)
        if asked := self.settle_ledgers():
            # An oracle of texts knows better: what it was asked, without what needs no question.
            wanted = asked["queries"] + asked["cache_hits"] + asked["modelled"]
            if wanted >= asked["invalid"]:  # else it was asked ahead, and that is counted already
                answers, invalid = wanted, asked["invalid"]
        self._recent.append((answers, invalid, steps))
        if self._steps >= _STEPS and (sentence := self.too_many_invalid()):
            self.stop(OracleStoppedError(sentence))

    def count(
        self,
        progress: Progress,
        prompts: int,
        queries: int,
        first_batch: bool = True,
        invalid: int = 0,
        unjudged: int = 0,
        tokens: int = 0,
        answers: int = 0,
    ) -> tuple[int, int]:
        """Add the processes' numbers of a batch to those of the game; queries are for each prompt.

        Returns:
            answers that were wanted of all processes, and how many of them are invalid.
        """
        each = self.each([prompts * queries, invalid, unjudged, tokens, answers, queries])
        asked, invalid, unjudged, tokens, answers, _ = summed(each)
        progress.queries += asked
        progress.invalid += invalid
        progress.unjudged += unjudged
        progress.tokens += tokens
        if first_batch:  # the others have different prompts
            # One number in all processes, also where one asks again about what was not answered.
            progress.queries_per_prompt += max(queries for *_, queries in each)
        return answers, invalid

    def settle_ledgers(self) -> dict[str, int]:
        """Add up what the oracle was really asked in all processes; each of them calls this.

        Returns:
            what it was asked since the last time; empty where it keeps no ledger.
        """
        oracle_ledgers = ledgers(self.oracle).values()
        if not oracle_ledgers:
            return {}
        counts = [ledger.here[field] for ledger in oracle_ledgers for field in FIELDS]
        total = iter(self.reduce(counts))
        asked = dict.fromkeys(FIELDS, 0)
        for ledger in oracle_ledgers:
            of_all = {field: next(total) for field in FIELDS}
            ledger.settle(of_all)
            asked = {field: asked[field] + of_all[field] for field in FIELDS}
        return asked

    def too_many_invalid(self) -> str:
        """What is wrong where the oracle left too much of the last steps unanswered; else empty."""
        answers = sum(wanted for wanted, _, _ in self._recent)
        invalid = sum(missing for _, missing, _ in self._recent)
        if invalid <= self.max_invalid * answers:
            return ""
        return (
            f"{type(self.oracle).__name__} had no valid answer to {invalid / answers:.0%} of what "
            f"it was asked in the last {self._steps} training steps: look at it by `nlhf "
            f"oracle`, or raise model.max_invalid, which is {self.max_invalid}"
            f"{last_words(self.oracle)}"
        )


def counts_of_processes(module: L.LightningModule, numbers: Sequence[int]) -> list[list[int]]:
    """Whole numbers of each process of a module's trainer; all of them call this alike."""
    return counts_of_each(trainer_of(module), numbers)
