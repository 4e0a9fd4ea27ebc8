"""The learning rates by which the benchmark trains our algorithms; each method has its own."""

from __future__ import annotations

OTHERS = 0.003  # of whatever stands in no table, and is given none
# Of the language part: `python -m benchmarks.bench_rates` prints it.
LANGUAGE = {
    "DNO": 0.001,
    "EGPO": 0.003,
    "INPO": 0.01,
    "IPOMD": 0.01,
    "MNPO": 0.01,
    "MovingMagnet": 0.003,
    "NashEMA": 0.01,
    "NashMD": 0.01,
    "NashMP": 0.003,
    "NashProx": 0.01,
    "OnlineDPO": 0.001,
    "OnlineIPO": 0.01,
    "OptimisticMirrorDescent": 0.003,
    "PairwiseGRPO": 0.01,
    "RSPO": 0.01,
    "SPPO": 0.001,
    "XPO": 0.001,
}

# Of the part of 10.7 M parameters, from configs/ten_million; all others were not swept there.
OTHERS_TEN_MILLION = 0.001
TEN_MILLION = {"EGPO": 0.0003, "NashMP": 0.003, "OnlineDPO": 0.0003}
