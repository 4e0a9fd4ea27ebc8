"""Playing and judging a batch part by part, the judge behind the generator where that is wanted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Thread

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.payoffs import Payoffs
from nlhf_zoo.game.step_timer import StepTimer
from nlhf_zoo.records import Prompts, Responses

# Scored responses to some prompts, and those of each opponent; in self-play one object twice.
Played = tuple[Responses, Sequence[Responses]]
Play = Callable[[Prompts], Played]
Judging = Callable[[Prompts, Responses, Sequence[Responses]], Payoffs]


class MicroBatches:
    """Splits a batch of prompts, so that judging may overlap with the generation of the next part.

    Responses are drawn in the order of the parts, and judged in that order by one thread at a time:
    whether the two overlap changes neither what is drawn nor what an oracle is asked, nor when.

    Args:
        parts: into how many parts a batch is split, at most.
        overlap: judge a part while the next one is played.

    Raises:
        UserError: there is nothing to overlap.
    """

    def __init__(self, parts: int = 1, overlap: bool = False) -> None:
        if parts < 1:
            raise UserError(f"model.micro_batches must be at least 1, but it is {parts}")
        if overlap and parts == 1:
            raise UserError(
                "model.overlap_judging needs a next part to draw meanwhile: set "
                "model.micro_batches to 2 or more"
            )
        self.parts = parts
        self.overlap = overlap

    def __call__(
        self, prompts: Prompts, play: Play, judge: Judging, timer: StepTimer
    ) -> tuple[Responses, Sequence[Responses], Payoffs]:
        """Play and judge all parts.

        Args:
            prompts: B prompts.
            play: draws responses to some of them.
            judge: asks the oracle about these.
            timer: where the time is counted; of judging that overlaps, what is waited for.

        Returns:
            scored responses, those of each opponent, and the payoffs, of all B prompts.
        """
        parts = prompts.split(self.parts)
        played: list[Played] = []
        if not self.overlap:
            payoffs = []
            for part in parts:
                with timer.phase("generate"):
                    played.append(play(part))
                with timer.phase("judge"):
                    payoffs.append(judge(part, *played[-1]))
            return *_joined(played), _joined_payoffs(payoffs)
        worker = _Worker()
        pending: list[Future[Payoffs]] = []
        try:
            for part in parts:
                with timer.phase("generate"):
                    played.append(play(part))
                pending.append(worker.submit(partial(judge, part, *played[-1])))
            with timer.phase("judge"):
                payoffs = [future.result() for future in pending]
        finally:
            worker.end(wait=not isinstance(sys.exception(), KeyboardInterrupt))
        return *_joined(played), _joined_payoffs(payoffs)


class _Worker:
    """One thread that does one thing after the other, until one fails.

    An interrupted program does not wait for it, as it would for those of concurrent.futures.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Future[Payoffs], Callable[[], Payoffs]] | None]
        self._tasks = SimpleQueue()
        self._thread = Thread(target=self._run, name="judge", daemon=True)
        self._thread.start()

    def submit(self, do: Callable[[], Payoffs]) -> Future[Payoffs]:
        """Do something when it is its turn."""
        future: Future[Payoffs] = Future()
        self._tasks.put((future, do))
        return future

    def end(self, wait: bool) -> None:
        """End when all is done, or something has failed."""
        self._tasks.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, do = task
            try:
                future.set_result(do())
            except BaseException as error:  # the one who waits gets it
                future.set_exception(error)
                return  # a judge that has failed is not asked again


def _joined(played: Sequence[Played]) -> Played:
    """The parts of a batch as one; what was one object stays one."""
    if len(played) == 1:
        return played[0]
    ours = [responses for responses, _ in played]
    scored = Responses.joined(ours)
    opponents = []
    for theirs in zip(*(opponents for _, opponents in played), strict=True):
        is_self_play = all(one is other for one, other in zip(ours, theirs, strict=True))
        opponents.append(scored if is_self_play else Responses.joined(theirs))
    return scored, opponents


def _joined_payoffs(parts: Sequence[Payoffs]) -> Payoffs:
    if len(parts) == 1:
        return parts[0]
    return Payoffs(
        torch.cat([part.payoff for part in parts]),
        torch.cat([part.valid for part in parts]),
        parts[0].queries,  # for each prompt, as the next
        parts[0].answers,
        sum(part.invalid for part in parts),
        _joined_or_none([part.preference for part in parts]),
        _joined_or_none([part.pair_valid for part in parts]),
    )


def _joined_or_none(tensors: Sequence[Tensor | None]) -> Tensor | None:
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(there) if there else None
