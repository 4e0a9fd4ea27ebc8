"""Batches without end, by the number of batches that were consumed, and loaders of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Sampler
from typing_extensions import override

if TYPE_CHECKING:
    import lightning as L


@dataclass(eq=False)
class EndlessBatches(Sampler[list[int]]):
    """Batches of prompt numbers without end, one pass over all prompts after another.

    It holds no state: pass number and place within it follow from how many batches were consumed,
    so a resumed run sees the batches that the other would have seen, and prefetching does no harm.
    All gradient steps of a round see the same prompts, for what a step writes is meant for the
    prompts of the next.
    """

    num_prompts: int
    batch_size: int  # prompts of a batch of one process
    consumed: Callable[[], int]  # batches this process has trained on; asked as iteration begins
    shuffle: bool = False  # a new order for each pass, the same in all processes
    seed: int = 0  # of these orders
    rank: int = 0
    world_size: int = 1  # processes; together they see each prompt once a pass
    repeats: int = 1  # gradient steps of a round
    accumulate: int = 1  # batches of one gradient step
    first_pass: Sequence[int] | None = None  # its order, in place of a drawn one

    @override
    def __iter__(self) -> Iterator[list[int]]:
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


class EpochBatches(EndlessBatches):
    """The same stream cut into epochs of a pass each, rounded up to whole batches.

    An iteration has as many batches as an epoch, from where training stands: after a resume within
    an epoch these are more than are left of it, and the trainer counts.
    """

    def __len__(self) -> int:
        """Batches of an epoch of one process."""
        return math.ceil(self.num_prompts / (self.batch_size * self.world_size))

    @override
    def __iter__(self) -> Iterator[list[int]]:
        return islice(super().__iter__(), len(self))


def game_batches(
    trainer: L.Trainer,
    num_prompts: int,
    batch_size: int,
    shuffle: bool,
    seed: int,
    first_pass: Sequence[int] | None = None,
) -> EndlessBatches:
    """The batches of a game, from where it stands; the arguments are those of `EndlessBatches`."""
    game: Any = trainer.lightning_module  # OnlineGame
    return EndlessBatches(
        num_prompts,
        batch_size,
        lambda: int(game.progress.batches),
        shuffle,
        seed,
        trainer.global_rank,
        trainer.world_size,
        game.gradient_steps_per_round,
        trainer.accumulate_grad_batches,
        first_pass,
    )


def loader(
    batch: Callable[[Sequence[int]], Any],
    places: range,
    batch_size: int = 1,
    batch_sampler: Sampler[list[int]] | None = None,
    kind: type[DataLoader[Any]] = DataLoader,
) -> DataLoader[Any]:
    """A loader of batches of places; ``batch`` says what stands there."""
    # With a generator of its own, making the loader's iterator does not draw from the global
    # random state.
    return kind(
        places,  # type: ignore[arg-type]  # a range is a map-style data set
        batch_size=batch_size,
        batch_sampler=batch_sampler,
        collate_fn=batch,
        generator=torch.Generator(),
    )
