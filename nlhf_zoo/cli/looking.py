"""The base of commands that build what ``nlhf fit`` would train, and look at it instead."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import lightning as L

from nlhf_zoo.callbacks import ResumeState
from nlhf_zoo.cli import refusals
from nlhf_zoo.cli.quiet import SILENT_TRAINER
from nlhf_zoo.cli.trainer import GameCLI
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.records import Prompts

_LOOKED_THROUGH = 64  # batches, for so many different prompts


class PromptCollector(L.Callback):
    """Reads ``num`` different prompts from the training data, and trains nothing."""

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
        """The prompts that were read, as one batch."""
        if not self._found:
            raise UserError("the data gives no prompts to train on")
        return Prompts.joined(self._found)


class LookingCLI(GameCLI):
    """Builds what ``nlhf fit`` would train; a subclass looks at it in ``fit``."""

    what = "looks at an OnlineGame, not at"  # the subclass's words for a refusal
    trains = False

    def before_fit(self) -> None:
        """Refuse what is no game, and what `fit` would refuse of its parts.

        Raises:
            SystemExit: this process is not the first of several, which looks alone, and says it.
        """
        if not self.trainer.is_global_zero:  # as `torchrun` has started it
            raise SystemExit(0)
        if not isinstance(self.model, OnlineGame):
            raise UserError(f"nlhf {self.what} a {type(self.model).__name__}")
        refusals.refuse_misfits(self.trainer, self.model, self.datamodule)

    def after_fit(self) -> None:
        """Nothing was trained or written."""

    def make_trainer(self, steps: int, callbacks: Sequence[L.Callback]) -> L.Trainer:
        """A silent trainer for a few steps: the user's device, one of them, and precision.

        With -1 steps it goes on until a callback ends it.
        """
        config = self.config_init[self.subcommand]["trainer"]
        devices = config["devices"]
        return L.Trainer(
            accelerator=config["accelerator"],
            devices=devices[:1] if isinstance(devices, list) else 1,
            precision=config["precision"],
            max_steps=steps,
            limit_val_batches=0,
            logger=False,
            callbacks=[ResumeState(), *callbacks],
            **SILENT_TRAINER,
            **self.more_options(config),
        )

    def more_options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What else such a trainer takes of the user's configuration."""
        return {}

    def first_prompts(
        self, game: OnlineGame, num: int, ckpt_path: str | None
    ) -> tuple[L.Trainer, Prompts]:
        """Different prompts of the training data, as the policy reads them, and their trainer.

        The game takes the weights of `ckpt_path`, and is put where the trainer computes.
        """
        collector = PromptCollector(num)
        trainer = self.make_trainer(-1, [collector])  # the collector ends it, before a step
        with warnings.catch_warnings():  # that the run had callbacks whose state is not wanted here
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks")
            trainer.fit(game, datamodule=self.datamodule, ckpt_path=ckpt_path, weights_only=True)
        game.to(trainer.strategy.root_device)
        return trainer, collector.prompts().to(game.device)
