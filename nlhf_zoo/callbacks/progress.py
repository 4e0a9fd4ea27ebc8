"""A progress bar over rounds, where Lightning would count batches of an endless stream."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm
from typing_extensions import override

from nlhf_zoo.game.online_game import OnlineGame


class GameProgressBar(ProgressBar):
    """Rounds played of those in the budget, on standard error, for runs of over a second."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._enabled = True
        self._tokens = 0  # that were drawn before this run began

    def disable(self) -> None:
        """Show nothing (Lightning calls this in all processes but the first)."""
        self._enabled = False

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled or not isinstance(pl_module, OnlineGame):
            return
        total = pl_module.max_rounds
        if pl_module.max_queries is not None:
            total = min(
                total or pl_module.max_queries,
                pl_module.max_queries // pl_module.queries_per_round(),
            )
        self._tokens = pl_module.progress.tokens
        name = type(pl_module.algorithm).__name__
        self._bar = tqdm(
            total=total, initial=pl_module.progress.round, desc=name, unit=" rounds", delay=1
        )

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._bar is None or not isinstance(pl_module, OnlineGame):
            return
        figures = self.get_metrics(trainer, pl_module)
        figures.pop("v_num", None)
        shown = {k.split("/")[-1]: v for k, v in figures.items()}
        self._bar.set_postfix(shown | self._speed(pl_module), refresh=False)
        self._bar.update(pl_module.progress.round - self._bar.n)

    def _speed(self, game: OnlineGame) -> dict[str, str]:
        """Tokens per second, and which phase takes the largest share; nothing in closed form."""
        seconds = game.timer.total
        whole = sum(seconds.values())
        if game.progress.tokens == self._tokens or not whole:
            return {}
        slowest = max(seconds, key=seconds.__getitem__)
        return {
            "tokens/s": f"{(game.progress.tokens - self._tokens) / whole:.0f}",
            slowest: f"{seconds[slowest] / whole:.0%}",
        }

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
