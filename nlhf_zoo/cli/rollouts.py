"""What a rollout that serves several gradient steps will take, said before it is drawn."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import lightning as L

from nlhf_zoo.callbacks import GameCheckpoint
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.held_rollout import bytes_held
from nlhf_zoo.game.lightning_internals import is_trial
from nlhf_zoo.game.online_game import OnlineGame

_SAID = 2**20  # bytes; smaller ones are nobody's concern
_KEPT = 3  # rollouts on disk at most: the present one, and those of two checkpoints


def forecast(trainer: L.Trainer, game: OnlineGame) -> None:
    """Say how large a rollout is that is held, and refuse one that the disk has no room for.

    Raises:
        UserError: there is too little room.
    """
    num_prompts = game.rollout_prompts
    if game.reuse is None or num_prompts is None or is_trial(trainer):
        return
    rollout, plan = game.rollout, game.plan
    size = bytes_held(
        num_prompts,
        rollout.num_responses,
        getattr(game.policy, "max_new_tokens", 1),
        max(len({*step.centre, *step.sampler, step.reference}) for step in plan),
        any(step.self_play or step.pairs for step in plan),
        any(step.explored is not None for step in plan),
    )
    size *= 1 + rollout.replay
    if size < _SAID:
        return
    writes = any(isinstance(each, GameCheckpoint) for each in trainer.checkpoint_callbacks)
    if trainer.is_global_zero:
        schedule = game.reuse.schedule(game, num_prompts)
        print(
            f"A rollout: {num_prompts:,} prompts x {rollout.num_responses} responses in each "
            f"process, drawn in {game.micro_batches.number(num_prompts):,} parts, then "
            f"{schedule.optimizer_steps:,} optimiser steps on it; about {size / 2**20:,.0f} MiB "
            f"of memory{f', and up to {_KEPT} times that on disk' if writes else ''}.",
            file=sys.stderr,
        )
    places = [logger.save_dir for logger in trainer.loggers if logger.save_dir]
    folder = Path(str((places or [trainer.default_root_dir])[0])).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if writes and free < _KEPT * size * trainer.world_size:
        raise UserError(
            f"rollouts of {num_prompts:,} prompts take up to {_KEPT} x {size / 2**30:,.1f} GiB for "
            f"each process, and {folder} has {free / 2**30:,.1f} GiB free: lower data.batch_size, "
            "or write elsewhere"
        )
