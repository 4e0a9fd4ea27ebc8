"""The learning rates by which the benchmark trains our algorithms; each method has its own."""

from __future__ import annotations

OTHERS = 0.003  # of whatever stands in no table, and is given none
# Of the language part: `python -m benchmarks.bench_rates` prints it.
LANGUAGE: dict[str, float] = {}
