"""Several processes of a run as threads of one: what they send each other, in milliseconds."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


class Messages:
    """Adds up tensors of W threads; one that fails ends the others' waiting."""

    def __init__(self, size: int) -> None:
        self.given: list[Tensor] = [torch.empty(0)] * size
        self.barrier = threading.Barrier(size, timeout=30)

    def reduce(self, rank: int, tensor: Tensor) -> Tensor:
        self.given[rank] = tensor.clone()
        self.barrier.wait()
        total = torch.stack(self.given).sum(0)
        self.barrier.wait()
        return total


def trainer(rank: int, size: int, messages: Messages | None = None) -> Any:
    """What a part asks of the Trainer of one of several processes."""
    add = (messages or Messages(size)).reduce
    strategy = SimpleNamespace(
        reduce=lambda tensor, reduce_op: add(rank, tensor), root_device=torch.device("cpu")
    )
    return SimpleNamespace(
        global_rank=rank, world_size=size, strategy=strategy, accumulate_grad_batches=1,
        is_global_zero=rank == 0,
    )  # fmt: skip


def together(size: int, work: Callable[[Any], _T]) -> list[_T]:
    """Do the work of each process, which gets its Trainer."""
    messages = Messages(size)

    def one(rank: int) -> _T:
        try:
            return work(trainer(rank, size, messages))
        except BaseException:
            messages.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        done = [pool.submit(one, rank) for rank in range(size)]
    broken = threading.BrokenBarrierError
    errors = [error for each in done if (error := each.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, broken)):
        raise error
    return [each.result() for each in done]
