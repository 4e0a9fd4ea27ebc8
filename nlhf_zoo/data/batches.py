"""Batches without end, by the number of batches that were consumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler


class EndlessBatches(Sampler[list[int]]):
    """Batches of prompt numbers without end, one pass over all prompts after another.

    It holds no state: pass number and place within it follow from how many batches were consumed,
    so a resumed run sees the batches that the other would have seen, and prefetching does no harm.

    Args:
        num_prompts: prompts there are.
        batch_size: prompts of a batch of one process.
        consumed: says how many batches this process has trained on; asked when iteration begins.
        shuffle: a new order for each pass, the same in all processes.
        seed: of these orders.
        rank: number of this process.
        world_size: number of processes; together they see each prompt once a pass.
        repeats: gradient steps that see the same prompts: those of one round, for what a step
            writes is meant for the prompts of the next.
        accumulate: batches of one gradient step.
        first_pass: order of the first pass, in place of a drawn one.
    """

    def __init__(
        self,
        num_prompts: int,
        batch_size: int,
        consumed: Callable[[], int],
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
        accumulate: int = 1,
        first_pass: Sequence[int] | None = None,
    ) -> None:
        self.num_prompts = num_prompts
        self.batch_size = batch_size
        self.consumed = consumed
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.repeats = repeats
        self.accumulate = accumulate
        self.first_pass = first_pass

    def __iter__(self) -> Iterator[list[int]]:
        """Batches from where training stands."""
        consumed = self.consumed()
        order_of: tuple[int, Sequence[int]] = (-1, [])
        while True:
            played, part = divmod(consumed, self.repeats * self.accumulate)
            batch = played * self.accumulate + part % self.accumulate
            first = (batch * self.world_size + self.rank) * self.batch_size
            chosen = []
            for place in range(first, first + self.batch_size):
                number, index = divmod(place, self.num_prompts)
                if order_of[0] != number:
                    order_of = (number, self._order(number))
                chosen.append(order_of[1][index])
            yield chosen
            consumed += 1

    def _order(self, number: int) -> Sequence[int]:
        if number == 0 and self.first_pass is not None:
            return self.first_pass
        if not self.shuffle:
            return list(range(self.num_prompts))
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return [int(i) for i in torch.randperm(self.num_prompts, generator=rng)]
