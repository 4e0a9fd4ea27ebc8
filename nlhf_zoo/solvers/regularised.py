"""stub"""
from __future__ import annotations
from torch import Tensor
from nlhf_zoo.solvers.solution import Solution

def regularised_nash(P: Tensor, log_reference: Tensor, beta: float, tolerance: float = 1e-12, progress: bool = False) -> Solution:
    raise NotImplementedError
