"""A run: one method from one seed to the end of the budget, in a folder for other commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from typing_extensions import override

from nlhf_zoo.callbacks import Budget, GameCheckpoint, ResumeState
from nlhf_zoo.cli.bench.methods import Block, Method
from nlhf_zoo.cli.bench.ten_million.setting import BATCH, BETA
from nlhf_zoo.cli.compare import keeping
from nlhf_zoo.cli.compare.entries import made_game
from nlhf_zoo.cli.policies import weights_digest
from nlhf_zoo.cli.quiet import GAME_TRAINER
from nlhf_zoo.data.text_prompts import TextPrompts
from nlhf_zoo.errors import DivergenceError, UserError
from nlhf_zoo.files import written
from nlhf_zoo.game.online_game import OnlineGame

_CLIP = 1.0  # the gradient's norm
_SETTINGS, _ENDED = "settings.json", "ended.json"


@dataclass(frozen=True, slots=True)
class Run:
    """A method, from one seed.

    Args:
        method: which.
        seed: of the run.
        queries: its budget, for each prompt of a batch.
        model: the section `model` of its file.
        prompts: the file of those it trains on.
        folder: of the run.
    """

    method: Method
    seed: int
    queries: int
    model: Block
    prompts: Path
    folder: Path

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.method.name}, seed {self.seed}"

    def begin(self, overwrite: bool) -> None:
        """Make its folder, or see that what is there is this run's.

        Raises:
            UserError: another run's files are there.
        """
        data = {"path": str(self.prompts.absolute()), "batch_size": BATCH}
        budget = {"class_path": "nlhf_zoo.Budget", "init_args": {"queries": self.queries}}
        config: dict[str, Any] = {
            "seed_everything": self.seed,
            "model": self.model,
            "data": {"class_path": "nlhf_zoo.TextPrompts", "init_args": data},
            "trainer": {"gradient_clip_val": _CLIP, "callbacks": [budget]},
        }
        settings = json.dumps({"config": config, "sources": self.method.sources})
        kept = self.folder / _SETTINGS
        if kept.is_file() and kept.read_text(encoding="utf-8") != settings:
            if not overwrite:
                raise UserError(
                    f"{self.folder} holds another run, of other options or another file: give "
                    "another --output, or --overwrite"
                )
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, text in (
            (self.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False)),
            (kept, settings),
        ):
            with written(path) as beside:
                beside.write_text(text, encoding="utf-8")

    def play(self, report: Callable[[int], Any]) -> str | None:
        """Train it, from where it was interrupted.

        Args:
            report: given the queries since its last call.

        Returns:
            the checksum of its weights; None where it has left the numbers.
        """
        ended = self.folder / _ENDED
        if ended.is_file():
            report(self.queries)
        else:
            diverged = self._train(report)
            with written(ended) as beside:
                beside.write_text(json.dumps({"diverged": diverged}), encoding="utf-8")
        if json.loads(ended.read_text(encoding="utf-8"))["diverged"]:
            return None
        return weights_digest(str(self.folder))

    def _train(self, report: Callable[[int], Any]) -> bool:
        """Whether it has left the numbers."""
        L.seed_everything(self.seed, verbose=False)
        game = made_game(yaml.safe_dump(self.model, sort_keys=False), BETA)
        watch = _Watch(report)
        keeper = GameCheckpoint(8, dirpath=str(self.folder / keeping.FOLDER))
        trainer = L.Trainer(
            **GAME_TRAINER,
            accelerator="cpu",
            devices=1,
            gradient_clip_val=_CLIP,
            enable_progress_bar=False,
            logger=False,
            default_root_dir=self.folder,
            callbacks=[Budget(queries=self.queries), watch, ResumeState(), keeper],
        )
        prompts = TextPrompts(str(self.prompts), batch_size=BATCH)
        try:
            trainer.fit(game, prompts, ckpt_path=keeping.checkpoint_of(self.folder))
        except DivergenceError:
            return True
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error
        finally:
            report(self.queries - watch.position)
        return False


class _Watch(L.Callback):
    """Reports progress in queries."""

    def __init__(self, report: Callable[[int], Any]) -> None:
        self._report = report
        self.position = 0  # that was reported

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, OnlineGame)
        position = pl_module.progress.queries_per_prompt
        self._report(position - self.position)
        self.position = position
