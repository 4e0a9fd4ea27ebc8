"""What the oracle was asked, in every logger, against rounds."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.oracles.ledger import ledgers, spent
from nlhf_zoo.oracles.wrappers.ensemble import EnsembleOracle


class QueryLog(L.Callback):
    """Log what was asked so far, what could not be answered, and the tokens that were drawn.

    `oracle/queries` counts as algorithms are compared; `ledger/...` is what an oracle of texts was
    really asked, by its own count: a cache answers for it, an order is swapped, a request fails.
    `oracle/agreement` is how far the members of an ensemble agree.
    """

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log at the end of a round, thinned; in closed form, after each training step."""
        if not isinstance(pl_module, OnlineGame) or not pl_module.between_rounds:
            return
        progress = pl_module.progress
        if pl_module.trajectory is None and not is_logged(progress.round):
            return
        figures: dict[str, float] = {
            "oracle/queries": progress.queries,
            "oracle/queries_per_prompt": progress.queries_per_prompt,
            "oracle/invalid": progress.invalid,
            "oracle/unjudged": progress.unjudged,
            "rollout/tokens": progress.tokens,
        }
        if ledgers(pl_module.oracle):
            counts = spent(pl_module.oracle)
            seconds = counts.pop("microseconds") / 1e6
            figures |= {f"ledger/{field}": count for field, count in counts.items()}
            figures["ledger/seconds"] = seconds
        agreements = [
            part.agreement().mean
            for part in pl_module.oracle.modules()
            if isinstance(part, EnsembleOracle)
        ]
        # NaN: no two members could be compared
        if agreements := [agreement for agreement in agreements if not math.isnan(agreement)]:
            figures["oracle/agreement"] = math.fsum(agreements) / len(agreements)
        for logger in trainer.loggers:
            logger.log_metrics(
                {tag: float(value) for tag, value in figures.items()}, progress.round
            )


def is_logged(number: int, every: int = 1) -> bool:
    """Whether loggers get this round: the first ten, then 12 a decade."""
    number //= every
    if number <= 10:
        return True
    return math.floor(12 * math.log10(number)) != math.floor(12 * math.log10(number - 1))
