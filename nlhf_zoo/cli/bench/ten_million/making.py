"""Makes what the runs read: prompts, pairs, a language model, and two oracles on other pairs."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import torch

from nlhf_zoo.cli.bench.ten_million import models, world
from nlhf_zoo.data import PreferencePairs
from nlhf_zoo.preference_models import PreferenceModel
from nlhf_zoo.text_models.heads import GeneralPreferenceHead

TRAINING, HELD_OUT = "training", "held_out"
# Each oracle has a backbone of another kind and pairs of another seed.
ORACLES = {TRAINING: ("llama", 1), HELD_OUT: ("gpt_neox", 2)}
NUM_HELD_OUT = 64  # prompts that nothing is trained on
_BATCH, _EPOCHS, _RATE, _DECAY = 64, 4, 0.002, 0.01


@dataclass(frozen=True, slots=True)
class World:
    """Where what the runs read lies.

    Args:
        folder: of all of it.
        size: of the models.
    """

    folder: Path
    size: models.Size

    @property
    def language_model(self) -> Path:
        """The policy's start and reference."""
        return self.folder / "language_model"

    @property
    def prompts(self) -> Path:
        """Prompts that are trained on."""
        return self.folder / "prompts.jsonl"

    @property
    def _validation(self) -> Path:
        return self.folder / "pairs_validation.jsonl"

    def oracle(self, name: str) -> Path:
        """The model of an oracle, `TRAINING` or `HELD_OUT`."""
        return self.folder / f"oracle_{name}" / "preference_model"

    def make(self, oracles_alone: bool = False) -> None:
        """What is not there yet; the same on each machine but for rounding.

        Args:
            oracles_alone: make no language model.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        every = world.prompts()
        held_out, training = every[:NUM_HELD_OUT], every[NUM_HELD_OUT:]
        world.write_lines(self.prompts, [{"prompt": one} for one in training])
        validation = world.pairs(max(64, self.size.pairs // 8), held_out, 3)
        world.write_lines(self._validation, validation)
        if not (
            oracles_alone or (self.language_model / "tokenizer.json").exists()
        ):  # it is written last
            models.language_model(self.language_model, self.size)
        for name in ORACLES:
            if not (self.folder / f"oracle_{name}.made").exists():
                self._make_oracle(name, training)
                (self.folder / f"oracle_{name}.made").touch()

    def _make_oracle(self, name: str, prompts: list[str]) -> None:
        """A general preference model, on its own pairs, from its own backbone."""
        kind, seed = ORACLES[name]
        backbone, pairs = self.folder / f"backbone_{name}", self.folder / f"pairs_{name}.jsonl"
        models.backbone(backbone, kind, seed)
        world.write_lines(pairs, world.pairs(self.size.pairs, prompts, seed))
        steps = -(-self.size.pairs // _BATCH) * _EPOCHS
        falling = partial(
            torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=steps
        )
        with redirect_stdout(sys.stderr):
            L.seed_everything(seed, verbose=False)
            model = PreferenceModel(
                str(backbone),
                GeneralPreferenceHead(dimension=8),
                optimizer=partial(torch.optim.AdamW, lr=_RATE, weight_decay=_DECAY),
                lr_scheduler=falling,
                template=f"{{prompt}} {{response}} {models.END}",
                eval_batch_size=64,
            )
            trainer = L.Trainer(
                accelerator="cpu",
                devices=1,
                max_epochs=_EPOCHS,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
                default_root_dir=self.oracle(name).parent,
            )
            validation = str(self._validation)
            data = PreferencePairs(str(pairs), batch_size=_BATCH, validation_path=validation)
            trainer.fit(model, data)
