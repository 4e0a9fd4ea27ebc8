"""Playing and judging a batch part by part, the judge behind the generator where that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from nlhf_zoo.errors import UserError
from nlhf_zoo.judging import Verdict
from nlhf_zoo.phases import Phases
from nlhf_zoo.records import Prompts, Responses

# Scored responses to some prompts, and those of each opponent; in self-play one object twice.
Played = tuple[Responses, Sequence[Responses]]
Play = Callable[[Prompts], Played]
Judging = Callable[[Prompts, Responses, Sequence[Responses]], Verdict]


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
        self, prompts: Prompts, play: Play, judge: Judging, phases: Phases
    ) -> tuple[Responses, Sequence[Responses], Verdict]:
        """Play and judge all parts.

        Args:
            prompts: B prompts.
            play: draws responses to some of them.
            judge: asks the oracle about these.
            phases: where the time is counted; of judging that overlaps, what is waited for.

        Returns:
            scored responses, those of each opponent, and the verdict, of all B prompts.
        """
        parts = prompts.split(self.parts)
        played: list[Played] = []
        if not self.overlap:
            verdicts = []
            for part in parts:
                with phases.phase("generate"):
                    played.append(play(part))
                with phases.phase("judge"):
                    verdicts.append(judge(part, *played[-1]))
            return *_joined(played), _joined_verdict(verdicts)
        pending: list[Future[Verdict]] = []
        executor = ThreadPoolExecutor(1, "judge")
        try:
            for part in parts:
                with phases.phase("generate"):
                    played.append(play(part))
                pending.append(executor.submit(judge, part, *played[-1]))
            with phases.phase("judge"):
                verdicts = [future.result() for future in pending]
        finally:
            executor.shutdown(cancel_futures=True)  # a judge that has failed is not asked again
        return *_joined(played), _joined_verdict(verdicts)


def _joined(played: Sequence[Played]) -> Played:
    """The parts of a batch as one; what was one object stays one."""
    if len(played) == 1:
        return played[0]
    scored = Responses.joined([responses for responses, _ in played])
    opponents = [
        scored
        if all(opponent is responses for responses, opponent in zip(ours, theirs, strict=True))
        else Responses.joined(theirs)
        for ours in [[responses for responses, _ in played]]
        for theirs in zip(*(opponents for _, opponents in played), strict=True)
    ]
    return scored, opponents


def _joined_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    if len(verdicts) == 1:
        return verdicts[0]
    return Verdict(
        torch.cat([verdict.payoff for verdict in verdicts]),
        torch.cat([verdict.valid for verdict in verdicts]),
        verdicts[0].queries,  # for each prompt
        sum(verdict.invalid for verdict in verdicts),
        _joined_or_none([verdict.preference for verdict in verdicts]),
        _joined_or_none([verdict.pair_valid for verdict in verdicts]),
    )


def _joined_or_none(tensors: Sequence[Tensor | None]) -> Tensor | None:
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(there) if there else None
