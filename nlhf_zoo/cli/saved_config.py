"""The configuration of a run, in its folder and beside its metrics."""

from __future__ import annotations

import math

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from nlhf_zoo.cli.resuming import flatten
from nlhf_zoo.game.online_game import OnlineGame


class SaveGameConfig(SaveConfigCallback):
    """Saves ``config.yaml`` in the run's folder, and hyper-parameters beside the final metrics."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save for `fit` alone: an evaluation must not overwrite what the run was made from."""
        if stage == "fit" and trainer.log_dir is not None:
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the loggers the model's configuration, flat."""
        if not trainer.loggers:
            return
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))
        flat = dict(
            flatten({"model": config["model"], "seed_everything": config["seed_everything"]})
        )
        for logger in trainer.loggers:
            if isinstance(logger, L.pytorch.loggers.TensorBoardLogger):
                names = ("hp/exploitability", "hp/exploitability_max")
                is_game = isinstance(pl_module, OnlineGame)
                logger.log_hyperparams(flat, dict.fromkeys(names, math.nan) if is_game else None)
            else:
                logger.log_hyperparams(flat)
