"""Oracles that ask the judge of the tests, and what they are asked."""

from __future__ import annotations

from judge_server import JudgeServer
from judges import responses

from nlhf_zoo.oracles.judge.oracle import JudgeOracle
from nlhf_zoo.oracles.text_oracle import Question
from nlhf_zoo.records import Responses

RETRIES = 3


def oracle(server: JudgeServer, **options) -> JudgeOracle:
    """An oracle that does not wait for long between attempts."""
    fast = {"timeout": 30.0, "retries": RETRIES, "backoff": 0.02, "patience": 60.0}
    return JudgeOracle("small", server.url, api_key_env=None, **{**fast, **options})


def questions(num: int) -> list[Question]:
    said = [{"role": "user", "content": "Which?"}]
    return [Question(said, f"one {number}", f"other {number}") for number in range(num)]


def texts(prefix: str, prompts: int, num: int) -> Responses:
    return responses(
        *([f"{prefix} {row} {one}\n</response>" for one in range(num)] for row in range(prompts))
    )
