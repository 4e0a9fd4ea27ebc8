"""Prompts of a table for the Trainer: an endless stream that resumes where it stood."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
from torch.utils.data import DataLoader
from typing_extensions import override

from nlhf_zoo.data.stream import game_batches, loader, or_stand_in, own_batches, refuse_below_one
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

    trainer: L.Trainer  # Lightning sets it before it asks for a loader

    def __init__(self, batch_size: int | None = None, shuffle: bool = False, seed: int = 0) -> None:
        super().__init__()
        refuse_below_one(batch_size=batch_size)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed

    def size(self, total: int, world_size: int, evenly: bool = False) -> int:
        """Prompts of a training step of ``world_size`` processes together, of ``total`` prompts.

        Args:
            total: prompts of the game.
            world_size: processes.
            evenly: whether each has to have as many, as a rollout that serves several steps.

        Raises:
            UserError: they cannot share them so, or a step takes too many.
        """
        if self.batch_size is None and (total < world_size or (evenly and total % world_size)):
            how = " evenly" if evenly and total > world_size else ""
            raise UserError(
                f"{total} prompts cannot be shared{how} among {world_size} processes: "
                "set data.batch_size"
            )
        if self.batch_size is not None and self.batch_size > total:
            raise UserError(
                f"data.batch_size is {self.batch_size}, but the game has {total} prompts only"
            )
        return self.batch_size * world_size if self.batch_size else total

    @override
    def train_dataloader(self) -> DataLoader[Prompts]:
        prompts = self._prompts()
        game: Any = self.trainer.lightning_module  # OnlineGame
        size = self.size(len(prompts), self.trainer.world_size, game.reuse is not None)
        batches = game_batches(self.trainer, len(prompts), size, self.shuffle, self.seed)
        return loader(prompts.take, range(len(prompts)), batch_sampler=batches)

    @override
    def val_dataloader(self) -> DataLoader[Prompts]:
        prompts = self._prompts()
        total = len(prompts)
        batches = own_batches(self.trainer, total, self.batch_size or total)
        return loader(partial(or_stand_in, prompts.take), range(total), batch_sampler=batches)

    test_dataloader = val_dataloader

    @override
    def predict_dataloader(self) -> DataLoader[Prompts]:
        prompts = self._prompts()  # all of them in each process, the first of which prints them
        total = len(prompts)
        return loader(prompts.take, range(total), batch_size=self.batch_size or total)

    def _prompts(self) -> Prompts:
        game: Any = self.trainer.lightning_module  # OnlineGame
        return table_prompts(game.oracle)


def table_prompts(oracle: Any) -> Prompts:
    """The prompts that belong to an oracle.

    Raises:
        UserError: the oracle has no table of prompts.
    """
    prompts = oracle.prompts
    if not isinstance(prompts, Prompts):
        raise UserError(
            f"TablePrompts needs an oracle over a table, and {type(oracle).__name__} is none: set "
            "data to TextPrompts"
        )
    return prompts
