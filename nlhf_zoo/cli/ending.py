"""What ``nlhf fit`` prints at its end: the last metrics, and where to look at all of them."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from nlhf_zoo.callbacks import CollapseWatch, ExactMetrics
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.preference_models import PreferenceModel

_AXES = {"epoch", "step"}  # that metrics are logged against


def last_metrics(trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
    """The last value of each metric that was logged, by its tag."""
    found = {tag: float(value) for tag, value in trainer.logged_metrics.items() if tag not in _AXES}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # its connector sets them
        if isinstance(callback, ExactMetrics):
            found |= {f"game/{name}": value for name, value in callback.latest.items()}
        if isinstance(callback, CollapseWatch):
            found |= callback.latest
    if isinstance(module, OnlineGame):
        progress = module.progress
        found["oracle/queries_per_prompt"] = float(progress.queries_per_prompt)
        found["oracle/queries"] = float(progress.queries)
        found["oracle/invalid"] = float(progress.invalid)
        found["rollout/tokens"] = float(progress.tokens)
    return dict(sorted(found.items()))


def lines(trainer: L.Trainer, module: L.LightningModule) -> Iterator[str]:
    """A table of the last metrics, and the commands that show them over the run.

    A figure that has an interval stands in one line with it.
    """
    metrics = last_metrics(trainer, module)
    intervals = {
        tag: (metrics.pop(f"{tag}_low"), metrics.pop(f"{tag}_high"))
        for tag in [*metrics]
        if {f"{tag}_low", f"{tag}_high"} <= metrics.keys()
    }
    width = max(map(len, metrics), default=0)
    for tag, value in metrics.items():
        figure = f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"
        if tag in intervals:
            low, high = intervals[tag]
            figure += f" ({low:.4g} to {high:.4g})"
        yield f"{tag:<{width}}  {figure}"
    if isinstance(module, PreferenceModel) and "val/accuracy" not in metrics:
        yield "Accuracy on held-out pairs: nlhf validate, with these options and --ckpt_path last"
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            yield f"All metrics: tensorboard --logdir {logger.root_dir}"
            if isinstance(module, OnlineGame):
                yield f"One page: nlhf report {logger.log_dir} --output report.html"
