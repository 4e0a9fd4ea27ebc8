"""Optimisers of policies, one file each."""

from nlhf_zoo.algorithms.base import PolicyOptimizer
from nlhf_zoo.algorithms.dno import DNO
from nlhf_zoo.algorithms.egpo import EGPO
from nlhf_zoo.algorithms.inpo import INPO
from nlhf_zoo.algorithms.ipomd import IPOMD
from nlhf_zoo.algorithms.mnpo import MNPO
from nlhf_zoo.algorithms.moving_magnet import MovingMagnet
from nlhf_zoo.algorithms.nash_ema import NashEMA
from nlhf_zoo.algorithms.nash_md import NashMD
from nlhf_zoo.algorithms.nash_mp import NashMP
from nlhf_zoo.algorithms.nash_prox import NashProx
from nlhf_zoo.algorithms.online_dpo import OnlineDPO
from nlhf_zoo.algorithms.online_ipo import OnlineIPO
from nlhf_zoo.algorithms.optimistic_mirror_descent import OptimisticMirrorDescent
from nlhf_zoo.algorithms.pairwise_grpo import PairwiseGRPO
from nlhf_zoo.algorithms.rebel import REBEL
from nlhf_zoo.algorithms.rspo import RSPO
from nlhf_zoo.algorithms.sppo import SPPO
from nlhf_zoo.algorithms.xpo import XPO

__all__ = [
    "DNO",
    "EGPO",
    "INPO",
    "IPOMD",
    "MNPO",
    "REBEL",
    "RSPO",
    "SPPO",
    "XPO",
    "MovingMagnet",
    "NashEMA",
    "NashMD",
    "NashMP",
    "NashProx",
    "OnlineDPO",
    "OnlineIPO",
    "OptimisticMirrorDescent",
    "PairwiseGRPO",
    "PolicyOptimizer",
]
