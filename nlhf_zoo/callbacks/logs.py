"""What the oracle was asked, and where the time goes: in every logger, against rounds."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from typing_extensions import override

from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.realisation import ClosedForm
from nlhf_zoo.oracles.ledger import ledgers, spent
from nlhf_zoo.oracles.wrappers.ensemble import EnsembleOracle
from nlhf_zoo.oracles.wrappers.fitted import FittedOracle
from nlhf_zoo.policies.language_model.decoding.floor import (
    WatchedDraws,
    copy_bandwidth,
    read_bytes,
    share_of_perfect,
)
from nlhf_zoo.policies.language_model.policy import CausalLMPolicy

_WARM = 2  # steps before drawing is watched


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
        learnt = [p.foreseen for p in pl_module.oracle.modules() if isinstance(p, FittedOracle)]
        if learnt and not math.isnan(learnt[0]):
            figures["oracle/foreseen"] = learnt[0]
        for logger in trainer.loggers:
            logger.log_metrics(
                {tag: float(value) for tag, value in figures.items()}, progress.round
            )


# What loggers get a second time, against queries for each prompt.
BY_QUERY = (
    "game/exploitability",
    "game/kl_to_nash",
    "game/span",
    "game/kl_to_reference",
    "win_rate/vs_reference",
    "policy/kl",
    "policy/entropy",
    "val/exploitability",
    "val/win_rate",
    "val/kl",
)


def log_by_query(trainer: L.Trainer, figures: Mapping[str, float], queries: int) -> None:
    """Log those of some figures that methods are compared by against queries for each prompt.

    Each has the tag `by_query/...`: `game/exploitability` is `by_query/exploitability`, and
    `val/exploitability`, which is an estimate, `by_query/val_exploitability`.
    """
    again = {
        "by_query/" + tag.removeprefix("game/").replace("/", "_"): figures[tag]
        for tag in BY_QUERY
        if tag in figures
    }
    for logger in trainer.loggers if again else ():
        logger.log_metrics(again, queries)


def is_logged(number: int, every: int = 1) -> bool:
    """Whether loggers get this round: the first ten, then 12 a decade."""
    number //= every
    if number <= 10:
        return True
    return math.floor(12 * math.log10(number)) != math.floor(12 * math.log10(number - 1))


def share_sentence(tokens: int, moved: float, bandwidth: float, seconds: float) -> str:
    """What a draw took, beside what the memory alone would take.

    Args:
        tokens: that were drawn.
        moved: bytes that must be read for them.
        bandwidth: of the memory, bytes a second.
        seconds: that drawing took.
    """
    share = share_of_perfect(moved, bandwidth, seconds)
    return (
        f"nlhf: {tokens:,} tokens were drawn in {seconds:.2f} s, {share:.1%} of the speed of a "
        f"perfect decoder: {moved / 1e9:,.0f} GB must be read, at {bandwidth / 1e12:.2f} TB/s"
    )


def is_gpu(device: torch.device) -> bool:
    """Whether drawing there is bound by the memory's speed."""
    return device.type == "cuda"


class TimeLog(L.Callback):
    """Log the seconds of a training step by phase, and tokens per second, against rounds.

    The figures are means since those before; they are this process's, but the tokens are of all.
    In closed form there are no phases, and nothing is logged. On a GPU one line says at the start
    what share of a perfect decoder's speed a language model draws at.
    """

    def __init__(self) -> None:
        self._watched: WatchedDraws | None = None
        self._watches = True
        self._since = 0.0
        self._steps = 0
        self._tokens = 0
        self._began = 0
        self._generated = 0.0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, OnlineGame):
            pl_module.timer.take()
            self._began = trainer.global_step
            self._begin(pl_module)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        if not isinstance(pl_module, OnlineGame) or not self._watches or self._watched is not None:
            return
        policy = pl_module.policy
        if trainer.global_step - self._began < _WARM or not isinstance(policy, CausalLMPolicy):
            return
        self._watches = trainer.is_global_zero and is_gpu(policy.device)
        if self._watches:
            self._watched = WatchedDraws(policy.generator)
            self._generated = pl_module.timer.total["generate"]

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._watched is not None:
            self._watched.stop()

    def _say_share(self, game: OnlineGame) -> None:
        """Say once how far drawing is from what the memory allows, after a step that drew."""
        policy = game.policy
        if self._watched is None or not isinstance(policy, CausalLMPolicy):
            return
        tokens = self._watched.tokens
        if not tokens:
            return
        self._watched.stop()
        self._watches = False
        read = read_bytes(policy.language_model)
        if read is not None:
            seconds = game.timer.total["generate"] - self._generated
            moved, bandwidth = self._watched.moved(*read), copy_bandwidth(policy.device)
            print(share_sentence(tokens, moved, bandwidth, seconds), file=sys.stderr)
        self._watched = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log at the end of a round, thinned."""
        if not isinstance(pl_module, OnlineGame) or isinstance(pl_module.realisation, ClosedForm):
            return
        self._say_share(pl_module)
        self._steps += 1
        progress = pl_module.progress
        if not pl_module.between_rounds or not is_logged(progress.round):
            return
        seconds = time.perf_counter() - self._since
        figures = {
            f"time/{phase}": spent / self._steps for phase, spent in pl_module.timer.take().items()
        }
        figures["time/step"] = seconds / self._steps
        figures["speed/tokens_per_second"] = (progress.tokens - self._tokens) / seconds
        for logger in trainer.loggers:
            logger.log_metrics(figures, progress.round)
        self._begin(pl_module)

    def _begin(self, game: OnlineGame) -> None:
        self._since = time.perf_counter()
        self._steps = 0
        self._tokens = game.progress.tokens
