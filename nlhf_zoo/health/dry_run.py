"""A round of the game with its real trainer: what it counts, and whether it can be resumed."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from nlhf_zoo.data.stream import EndlessBatches
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.game.reuse import Reuse
from nlhf_zoo.game.rollout import Sample
from nlhf_zoo.health.check import Check, at_most, skipped
from nlhf_zoo.health.oracles.answers import Asked, listening
from nlhf_zoo.health.preservation import kept_tensors, restored_after, scatter
from nlhf_zoo.health.probe import gap
from nlhf_zoo.records import Prompts

# A trainer that takes so many training steps with these callbacks, and leaves nothing behind.
MakeTrainer = Callable[[int, Sequence[L.Callback]], L.Trainer]

_LONGEST_ROUND = 16  # gradient steps that are rehearsed to count a round


def dry_run(game: OnlineGame, prompts: Prompts, make_trainer: MakeTrainer) -> list[Check]:
    """Play a round, save after its first step, and resume from there; the game is left as it was.

    Of B prompts, as they were read; a closed form plays all that there are.
    """
    if game.realisation.closed_form and game.oracle.prompts is not None:
        prompts = game.oracle.prompts
    # Where products are remembered, the first round may have none to remember.
    rounds = 2 if game.rollout.enumerated else 1
    with _one_minibatch(game):
        return _played(game, prompts, make_trainer, rounds)


@contextmanager
def _one_minibatch(game: OnlineGame) -> Iterator[None]:
    """Pass over a rollout of these few prompts in one minibatch."""
    rollout, known, reuse = game.rollout, game.rollout_prompts, game.reuse
    game.reuse = None if reuse is None else Reuse()
    if isinstance(rollout, Sample):
        game.rollout = copy.copy(rollout)
        game.rollout.minibatch, game.rollout.ahead = None, False
    game.rollout_prompts = None
    try:
        yield
    finally:
        game.rollout, game.rollout_prompts, game.reuse = rollout, known, reuse


def _played(
    game: OnlineGame, prompts: Prompts, make_trainer: MakeTrainer, rounds: int
) -> list[Check]:
    steps = game.gradient_steps_per_round
    counts_round = steps <= _LONGEST_ROUND and game.between_rounds
    first, last = ((rounds - 1) * steps, rounds * steps) if counts_round else (0, 1)
    with tempfile.TemporaryDirectory() as folder, restored_after(game):
        path = Path(folder) / "rehearsal.ckpt"
        if game.reuse is not None:
            game.reuse.folder = Path(folder)
        with restored_after(game), listening(game.oracle) as asked:
            scatter(game.policy)
            whole = _Rehearsal(asked, path)
            trainer, loader = make_trainer(max(2, last), [whole]), _loader(game, prompts)
            trainer.fit(game, loader, val_dataloaders=[])
        # Nothing but the checkpoint may carry over: other weights, other random numbers.
        torch.manual_seed(1)
        random.seed(1)
        resumed = _Rehearsal(Asked(), None)
        trainer, loader = make_trainer(2, [resumed]), _loader(game, prompts)
        trainer.fit(game, loader, val_dataloaders=[], ckpt_path=path, weights_only=True)
        covered = _covered(game, path)
    before, after = whole.counters[first], whole.counters[last]
    asked_for, counted, per_prompt = (b - a for a, b in zip(before, after, strict=True))
    return [
        covered,
        at_most(
            "a resumed run is the same run",
            max((gap(v, resumed.tensors[name]) for name, v in whole.tensors.items()), default=0.0),
            0.0,
            "something that moves is not in the checkpoint, or draws from no stream keyed by "
            "(seed, process, step)",
        ),
        _counted(game, counted, asked_for),
        _declared(game, per_prompt if counts_round else None),
    ]


class _Rehearsal(L.Callback):
    """Saves after the first training step, reads off the second, and counts at each."""

    def __init__(self, asked: Asked, path: Path | None) -> None:
        self.asked = asked  # what the oracle is asked meanwhile
        self.path = path  # where the checkpoint goes, if it is saved
        self.tensors: dict[str, Tensor] = {}  # what a checkpoint holds, after the second step
        # By training steps taken: queries asked, counted, and counted for each prompt.
        self.counters: dict[int, tuple[int, int, int]] = {}

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._count(trainer, pl_module)

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
        self._count(trainer, pl_module)
        if trainer.global_step == 1 and self.path is not None:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == 2:
            assert isinstance(pl_module, OnlineGame)
            self.tensors = kept_tensors(pl_module)

    def _count(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, OnlineGame)
        queries, per_prompt = module.progress.queries, module.progress.queries_per_prompt
        self.counters[trainer.global_step] = self.asked.queries, queries, per_prompt


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


def _covered(game: OnlineGame, path: Path) -> Check:
    saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    trained = {name for name, p in game.named_parameters() if p.requires_grad}
    missing = trained - saved.keys()
    return at_most(
        f"checkpoints hold all that trains, {path.stat().st_size / 2**20:,.1f} MiB",
        len(missing),
        0.0,
        f"Policy.checkpoint_keys leaves out {min(missing, default='')}",
        f" of {len(trained)} tensors missing",
    )


def _counted(game: OnlineGame, counted: int, asked: int) -> Check:
    name = "queries are counted as they are asked"
    if game.realisation.closed_form:
        return skipped(name, "the closed form reads the table")
    advice = (
        "budgets and comparisons would be of something else: count in OnlineGame.play_and_judge"
    )
    return Check(name, asked == counted, f"{counted} counted, {asked} asked", "equal", advice)


def _declared(game: OnlineGame, counted: int | None) -> Check:
    """Of a round for each prompt; None where no whole round was counted."""
    name = "queries of a round are as declared"
    if counted is None:
        why = f"a round has {game.gradient_steps_per_round} gradient steps, or is under way"
        return skipped(name, why)
    declared, adaptive = game.queries_per_round(), game.algorithm.adaptive
    agrees = counted <= declared if adaptive else counted == declared  # a rejected round costs less
    figure = f"{counted} counted, {declared} declared for each prompt"
    advice = f"{type(game.algorithm).__name__}.queries must say what its plan asks for"
    return Check(name, agrees, figure, "at most" if adaptive else "equal", advice)
