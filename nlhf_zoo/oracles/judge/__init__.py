"""A language model behind an endpoint as the judge."""

from nlhf_zoo.oracles.judge.oracle import JudgeOracle

__all__ = ["JudgeOracle"]
