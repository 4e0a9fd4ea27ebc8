"""Prompts of a table for the Trainer: an endless stream that resumes where it stood."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from nlhf_zoo.data.batches import EndlessBatches
from nlhf_zoo.data.validation import refuse_below_one
from nlhf_zoo.errors import UserError
from nlhf_zoo.records import Prompts


class TablePrompts(L.LightningDataModule):
    """The prompts (contexts, independent games) of the game's oracle.

    Args:
        batch_size: prompts of a training step in one process; null takes all, shared among the
            processes.
        shuffle: draw a new order for each pass.
        seed: of these orders.
    """

    def __init__(self, batch_size: int | None = None, shuffle: bool = False, seed: int = 0) -> None:
        super().__init__()
        refuse_below_one(batch_size=batch_size)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed

    def size(self, total: int, world_size: int) -> int:
        """Prompts of a training step in one process.

        Args:
            total: prompts there are.
            world_size: number of processes.

        Raises:
            UserError: they cannot be shared so.
        """
        if self.batch_size is None and total % world_size:
            raise UserError(
                f"{total} prompts cannot be shared evenly among {world_size} processes: "
                "set data.batch_size"
            )
        if self.batch_size is not None and self.batch_size > total:
            raise UserError(
                f"data.batch_size is {self.batch_size}, but the game has {total} prompts only"
            )
        return self.batch_size or total // world_size

    def train_dataloader(self) -> DataLoader[Prompts]:
        """The endless stream."""
        trainer, total = self._trainer_and_total()
        size = self.size(total, trainer.world_size)
        game = trainer.lightning_module
        batches = EndlessBatches(
            total,
            size,
            lambda: int(game.progress.batches),  # type: ignore[union-attr, arg-type]  # OnlineGame's
            self.shuffle,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            game.gradient_steps_per_round,  # type: ignore[arg-type]
            trainer.accumulate_grad_batches,
        )
        return self._loader(total, batch_sampler=batches)

    def val_dataloader(self) -> DataLoader[Prompts]:
        """Every prompt once."""
        _, total = self._trainer_and_total()
        return self._loader(total, batch_size=self.batch_size or total)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def _trainer_and_total(self) -> tuple[L.Trainer, int]:
        trainer = self.trainer
        assert trainer is not None
        return trainer, len(self._prompts())

    def _prompts(self) -> Prompts:
        assert self.trainer is not None
        return table_prompts(self.trainer.lightning_module.oracle)  # OnlineGame's

    def _loader(
        self, total: int, batch_size: int = 1, batch_sampler: EndlessBatches | None = None
    ) -> DataLoader[Prompts]:
        # With a generator of its own, making the loader's iterator does not draw from the global
        # random state.
        return DataLoader(
            range(total),  # type: ignore[arg-type]  # a range is a map-style data set
            batch_size=batch_size,
            batch_sampler=batch_sampler,
            collate_fn=self._prompts().take,
            generator=torch.Generator(),
        )


def table_prompts(oracle: Any) -> Prompts:
    """The prompts that belong to an oracle.

    Raises:
        UserError: none do.
    """
    prompts = oracle.prompts
    if not isinstance(prompts, Prompts):
        raise UserError(
            f"TablePrompts needs an oracle over a table, and {type(oracle).__name__} is none: set "
            "data to TextPrompts"
        )
    return prompts
