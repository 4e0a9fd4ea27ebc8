"""TensorBoard's first page: which run is ahead, on what budget, and how far from its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from nlhf_zoo.callbacks.collapse import CollapseWatch
from nlhf_zoo.callbacks.exact_metrics import MONITORED, ExactMetrics
from nlhf_zoo.callbacks.logs import log_by_query
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.preference_models import PreferenceModel


@dataclass(frozen=True, slots=True)
class Category:
    """Charts that answer one question, against one axis."""

    title: str
    axis: str
    charts: Mapping[str, tuple[str, ...]]  # by what they show and its unit: the tags of their lines

    @property
    def layout(self) -> dict[str, list[Any]]:
        """As TensorBoard has it: lines of these tags, and of no longer ones, of all runs."""
        return {
            name: ["Multiline", [rf"{tag}$" for tag in tags]] for name, tags in self.charts.items()
        }


# All runs lie in one chart, so that the tags of a chart have one unit.
CATEGORIES = (
    Category(
        "Which run is ahead",
        "queries per prompt",
        {
            "exploitability": ("by_query/exploitability", "by_query/val_exploitability"),
            "win rate against the reference": (
                "by_query/win_rate_vs_reference",
                "by_query/val_win_rate",
            ),
            "KL to the equilibrium, nats": ("by_query/kl_to_nash",),
            "KL to the reference, nats": (
                "by_query/kl_to_reference",
                "by_query/val_kl",
                "by_query/policy_kl",
            ),
        },
    ),
    Category(
        "On what budget, and how far from the end",
        "rounds",
        {
            "share of the budget that is spent": ("budget/share",),
            "preference queries per prompt": ("oracle/queries_per_prompt",),
            "pairs that the oracle was really asked about": ("ledger/queries",),
            "answers that could not be had": ("oracle/invalid",),
        },
    ),
    Category(
        "What the policy is like",
        "rounds",
        {
            "exploitability": ("game/exploitability", "val/exploitability"),
            "win rate against the reference": ("win_rate/vs_reference", "val/win_rate"),
            "KL to the reference, nats": ("game/kl_to_reference", "val/kl", "policy/kl"),
            "entropy, nats": ("val/entropy", "policy/entropy"),
            "length of held-out responses, tokens": ("val/length",),
            "share of them that was cut": ("val/truncated",),
            "share of the answers about them that could not be had": ("val/invalid",),
        },
    ),
    Category(
        "What it is trained on",
        "training steps",
        {
            "length of responses, tokens": ("rollout/length",),
            "share that was cut": ("rollout/truncated",),
            "KL to the reference, nats": ("train/kl",),
        },
    ),
)
LAYOUT = {f"{each.title}, against {each.axis}": each.layout for each in CATEGORIES}

# What stands beside the hyper-parameters: the last of the first of these that was logged.
_SAMPLED = {
    "hp/win_rate_vs_reference": ("val/win_rate", "win_rate/vs_reference"),
    "hp/kl_to_reference": ("val/kl", "policy/kl"),
    "hp/exploitability": ("val/exploitability",),
}
_PREFERENCE_MODEL = {
    f"hp/{name}": (f"val/{name}",) for name in ("accuracy", "log_loss", "symmetry_error")
}
_EXACT = {tag.replace("game/", "hp/"): (tag,) for tag in MONITORED}


class Dashboard(L.Callback):
    """Lay out TensorBoard's custom scalars, so that runs are compared in charts that say a thing.

    Figures of validation are logged once more against queries for each prompt, as `by_query/...`,
    and at the end the last figures as `hp/...`, beside the hyper-parameters. Loggers other than
    TensorBoard's get the same tags, and no layout, which they have none of.
    """

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, TensorBoardLogger) and isinstance(pl_module, OnlineGame):
                logger.experiment.add_custom_scalars(LAYOUT)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        fits = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fits or not isinstance(pl_module, OnlineGame) or _exact(trainer):
            return
        figures = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
        log_by_query(trainer, figures, pl_module.progress.queries_per_prompt)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _exact(trainer):
            return  # who logs them by himself
        figures = last_figures(trainer)
        sources = final_tags(trainer, pl_module).items()
        found = [(tag, name) for tag, names in sources for name in names if name in figures]
        last = {tag: figures[name] for tag, name in reversed(found)}  # of several the first
        for logger in trainer.loggers if last else ():
            logger.log_metrics(last, trainer.global_step)


def final_tags(trainer: L.Trainer, module: L.LightningModule) -> Mapping[str, tuple[str, ...]]:
    """What is logged at the end beside the hyper-parameters, and the last of which tags it is."""
    if isinstance(module, PreferenceModel):
        return _PREFERENCE_MODEL
    if not isinstance(module, OnlineGame):
        return {}
    return _EXACT if _exact(trainer) else _SAMPLED


def last_figures(trainer: L.Trainer) -> dict[str, float]:
    """The last figures of validation and of `CollapseWatch` by their tags."""
    found = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # its connector sets them
        if isinstance(callback, CollapseWatch):
            found |= callback.latest
    return found


def _exact(trainer: L.Trainer) -> bool:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # likewise
    return any(isinstance(callback, ExactMetrics) for callback in callbacks)
