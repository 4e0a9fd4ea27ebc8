"""A round of the game with its real trainer: what it counts, and whether it can be resumed."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from nlhf_zoo.data.batches import EndlessBatches
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.health.check import Check, at_most, skipped
from nlhf_zoo.health.oracles.answers import Asked, listening
from nlhf_zoo.health.preservation import kept_tensors, restored_after, scatter
from nlhf_zoo.health.probe import gap
from nlhf_zoo.records import Prompts

# A trainer that takes so many training steps with these callbacks, and leaves nothing behind.
MakeTrainer = Callable[[int, Sequence[L.Callback]], L.Trainer]

_LONGEST_ROUND = 16  # gradient steps that are rehearsed to count a round


@dataclass(slots=True)
class _Played:
    """What a rehearsal came to.

    Args:
        tensors: what a checkpoint holds, after the second training step.
        asked: distinct queries that the oracle got in a whole round, None where it was not asked.
        counted: queries that the game counted in it, of all prompts.
        per_prompt: queries that the game counted in it, for each prompt.
        saved: names in the checkpoint.
        size: of the checkpoint's file, in bytes.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    asked: int | None = None
    counted: int = 0
    per_prompt: int = 0
    saved: set[str] = field(default_factory=set)
    size: int = 0


def dry_run(game: OnlineGame, prompts: Prompts, make_trainer: MakeTrainer) -> list[Check]:
    """Play a round, save after its first step, and resume from there.

    Args:
        game: the game; it is left as it was.
        prompts: B prompts, as they were read; a closed form plays all that there are.
        make_trainer: makes a trainer.
    """
    if game.realisation.closed_form and game.oracle.prompts is not None:
        prompts = game.oracle.prompts
    # Where products are remembered, the first round may have none to remember.
    rounds = 2 if game.rollout.enumerated else 1
    last = rounds * game.gradient_steps_per_round
    counts_round = last <= rounds * _LONGEST_ROUND and game.between_rounds
    first = last - game.gradient_steps_per_round
    with tempfile.TemporaryDirectory() as folder, restored_after(game):
        path = Path(folder) / "rehearsal.ckpt"
        with restored_after(game):
            scatter(game.policy)
            counted = (first, last) if counts_round else (0, 1)
            whole = _play(game, prompts, make_trainer, path, counted)
        # Nothing but the checkpoint may carry over: other weights, other random numbers.
        torch.manual_seed(1)
        random.seed(1)
        resumed = _resume(game, prompts, make_trainer, path)
        trained = {name for name, p in game.named_parameters() if p.requires_grad}
    return [_covered(whole, trained), _resumes(whole, resumed), *_counts(game, whole, counts_round)]


class _Rehearsal(L.Callback):
    """Saves after the first training step, reads off the second, and counts between two others."""

    def __init__(
        self, played: _Played, asked: Asked, path: Path | None, counted: tuple[int, int]
    ) -> None:
        self.played = played
        self.asked = asked
        self.path = path
        self.first, self.last = counted
        self._before = (0, 0, 0)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before = self._counters(pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """In closed form a training step would play many rounds."""
        assert isinstance(pl_module, OnlineGame)
        pl_module.set_budget(pl_module.progress.round + 1, None)

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, OnlineGame)
        if trainer.global_step == 1 and self.path is not None:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == 2:
            self.played.tensors = kept_tensors(pl_module)
        if trainer.global_step == self.first:
            self._before = self._counters(pl_module)
        if trainer.global_step == self.last:
            now = self._counters(pl_module)
            asked, counted, per_prompt = (n - b for n, b in zip(now, self._before, strict=True))
            closed_form = pl_module.realisation.closed_form
            self.played.asked = None if closed_form else asked
            self.played.counted = counted
            self.played.per_prompt = per_prompt

    def _counters(self, module: L.LightningModule) -> tuple[int, int, int]:
        assert isinstance(module, OnlineGame)
        progress = module.progress
        return self.asked.queries, progress.queries, progress.queries_per_prompt


def _play(
    game: OnlineGame,
    prompts: Prompts,
    make_trainer: MakeTrainer,
    path: Path,
    counted: tuple[int, int],
) -> _Played:
    played = _Played()
    with listening(game.oracle) as asked:
        trainer = make_trainer(max(2, counted[1]), [_Rehearsal(played, asked, path, counted)])
        trainer.fit(game, _loader(game, prompts), val_dataloaders=[])
    content = torch.load(path, map_location="cpu", weights_only=True)
    played.saved = {*content["state_dict"]}
    played.size = path.stat().st_size
    return played


def _resume(
    game: OnlineGame, prompts: Prompts, make_trainer: MakeTrainer, path: Path
) -> dict[str, Tensor]:
    played = _Played()
    trainer = make_trainer(2, [_Rehearsal(played, Asked(), None, (-1, -1))])
    loader = _loader(game, prompts)
    trainer.fit(game, loader, val_dataloaders=[], ckpt_path=path, weights_only=True)
    return played.tensors


def _loader(game: OnlineGame, prompts: Prompts) -> DataLoader[Prompts]:
    """The same prompts again and again, resumed as the real stream is."""
    prompts = prompts.to("cpu")
    size = len(prompts)
    batches = EndlessBatches(size, size, lambda: game.progress.batches)
    return DataLoader(
        range(size),  # type: ignore[arg-type]  # a range is a map-style data set
        batch_sampler=batches,
        collate_fn=prompts.take,
        generator=torch.Generator(),
    )


def _covered(played: _Played, trained: set[str]) -> Check:
    missing = trained - played.saved
    return at_most(
        f"checkpoints hold all that trains, {played.size / 2**20:,.1f} MiB",
        len(missing),
        0.0,
        f"Policy.checkpoint_keys leaves out {min(missing, default='')}",
        f" of {len(trained)} tensors missing",
    )


def _resumes(played: _Played, resumed: dict[str, Tensor]) -> Check:
    worst = max((gap(value, resumed[name]) for name, value in played.tensors.items()), default=0.0)
    return at_most(
        "a resumed run is the same run",
        worst,
        0.0,
        "something that moves is not in the checkpoint, or draws from no stream keyed by "
        "(seed, process, step)",
    )


def _counts(game: OnlineGame, played: _Played, whole_round: bool) -> list[Check]:
    name = "queries are counted as they are asked"
    declared_name = "queries of a round are as declared"
    advice = (
        "budgets and comparisons would be of something else: count in OnlineGame.play_and_judge"
    )
    if played.asked is None:
        counted = skipped(name, "the closed form reads the table")
    else:
        wrong = abs(played.asked - played.counted)
        figure = f"{played.counted} counted, {played.asked} asked"
        counted = Check(name, wrong == 0, figure, "equal", advice)
    if not whole_round:
        why = f"a round has {game.gradient_steps_per_round} gradient steps, or is under way"
        return [counted, skipped(declared_name, why)]
    declared = game.queries_per_round()
    figure = f"{played.per_prompt} counted, {declared} declared for each prompt"
    advice = f"{type(game.algorithm).__name__}.queries must say what its plan asks for"
    passed = played.per_prompt == declared
    return [counted, Check(declared_name, passed, figure, "equal", advice)]
