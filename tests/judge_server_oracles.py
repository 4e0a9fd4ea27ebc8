"""Oracles that ask the judge of the tests, and what they are asked."""

import time
from collections.abc import Callable

import pytest
import torch
from judge_server import JudgeServer

from nlhf_zoo.oracles.judge.oracle import JudgeOracle
from nlhf_zoo.oracles.text_oracle import Question
from nlhf_zoo.records import Responses

RETRIES = 3


def oracle(server: JudgeServer, **options) -> JudgeOracle:
    """An oracle that does not wait for long between attempts, but for any server to reply."""
    given = {"model": "small", "base_url": server.url, "api_key_env": None}
    given |= {"timeout": 600.0, "retries": RETRIES, "backoff": 0.02, "patience": 3600.0}
    return JudgeOracle(**given | options)


class Clock:
    """Stands for the module `time` where patience and rates are measured.

    Args:
        ahead: by how many seconds the clock is ahead of the machine's.
        hurries: whether it runs ten thousand times as fast.
    """

    def __init__(
        self, ahead: Callable[[], float] = float, hurries: Callable[[], bool] = bool
    ) -> None:
        self.ahead, self.hurries = ahead, hurries
        self.gained, self.last = 0.0, time.monotonic()

    def monotonic(self) -> float:
        now = time.monotonic()
        self.gained += 1e4 * (now - self.last) * self.hurries()
        self.last = now
        return now + self.gained + self.ahead()


def patience_ends_in_an_outage(patch: pytest.MonkeyPatch | None = None) -> None:
    """The clock hurries once connections are refused; also `before` a run in another process."""
    from nlhf_zoo.oracles.judge import client, scheduler

    patch, refused, post = patch or pytest.MonkeyPatch(), [], client.Session.post

    async def counted(self, body):
        outcome = await post(self, body)
        if isinstance(outcome, client.Failure) and outcome.unreachable:
            refused.append(outcome)
        return outcome

    patch.setattr(client.Session, "post", counted)
    # With the second one, the first is the judge's last error.
    patch.setattr(scheduler, "time", Clock(hurries=lambda: len(refused) > 1))


def questions(num: int) -> list[Question]:
    said = [{"role": "user", "content": "Which?"}]
    return [Question(said, f"one {number}", f"other {number}") for number in range(num)]


def texts(prefix: str, prompts: int, num: int) -> Responses:
    text = [
        [f"{prefix} {prompt} {one}\n</response>" for one in range(num)] for prompt in range(prompts)
    ]
    shape = prompts, num, 1
    weight = torch.full(shape[:2], 1 / num, dtype=torch.float64)
    mask = torch.ones(shape, dtype=torch.bool)
    return Responses(torch.zeros(shape, dtype=torch.long), mask, weight, text=text)
