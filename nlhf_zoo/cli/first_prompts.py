"""The first prompts of a configuration's training data, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import lightning as L

from nlhf_zoo.callbacks import ResumeState
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.probe import joined
from nlhf_zoo.records import Prompts

_LOOKED_THROUGH = 64  # batches, for so many different prompts


class PromptCollector(L.Callback):
    """Reads different prompts from the training data, and trains nothing.

    Args:
        num: how many.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self._found: list[Prompts] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read, where the data is set up; and end there."""
        assert isinstance(pl_module, OnlineGame)
        trainer.should_stop = True
        seen: set[int] = set()
        data: Any = trainer.train_dataloader
        for batch in islice(iter(data), _LOOKED_THROUGH):
            if not isinstance(batch, Prompts):
                raise UserError(f"the data gives {type(batch).__name__} and no Prompts")
            new = [i for i, number in enumerate(batch.ids.tolist()) if number not in seen]
            if new := new[: self.num - len(seen)]:
                encoded = pl_module.policy.encode(batch.to(pl_module.device))
                self._found.append(encoded.take(new))
                seen |= {int(number) for number in batch.ids[new]}
            if len(seen) >= self.num:
                break

    def prompts(self) -> Prompts:
        """What was read."""
        if not self._found:
            raise UserError("the data gives no prompts to train on")
        return joined(self._found)


def silent_trainer(
    config: Mapping[str, Any],
    callbacks: Sequence[L.Callback],
    steps: int = 1,
    options: Mapping[str, Any] | None = None,
) -> L.Trainer:
    """The user's trainer on one device, for a few steps, silent.

    Args:
        config: the trainer's options, of which it takes device and precision.
        callbacks: in place of the user's.
        steps: training steps.
        options: further ones of the trainer.
    """
    devices = config["devices"]
    return L.Trainer(
        accelerator=config["accelerator"],
        devices=devices[:1] if isinstance(devices, list) else 1,
        precision=config["precision"],
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ResumeState(), *callbacks],
        **(options or {}),
    )
