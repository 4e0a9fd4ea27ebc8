"""A language model behind an endpoint as the judge."""

from nlhf_zoo.oracles.judge.oracle import JudgeOracle  # whose module this was in version 0.1

__all__ = ["JudgeOracle"]
