"""The cheap checks of a language model's health, before its first step."""

from __future__ import annotations

from typing import Any

import lightning as L

from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.examination import refuse_unhealthy


class HealthCheck(L.Callback):
    """Refuse to train a language model that fails a cheap check of `nlhf doctor`.

    On the first batch, where the model lies where it will be trained; the oracle is not asked.
    """

    def __init__(self) -> None:
        self._done = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Check once."""
        if not self._done and isinstance(pl_module, OnlineGame):
            refuse_unhealthy(pl_module, batch)
        self._done = True
