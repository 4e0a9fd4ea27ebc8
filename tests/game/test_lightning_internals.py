"""Lightning keeps what `game/lightning_internals.py` relies on: one test for each function."""

import lightning as L
import pytest
import torch
from zoo import fit, small_game

from nlhf_zoo import GameCheckpoint, GradientSteps, NashMD, OnlineGame, Sample
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.game import lightning_internals as internals


def new_game() -> OnlineGame:
    return small_game(NashMD(), rollout=Sample(4, 2), realisation=GradientSteps())


class Logger(L.pytorch.loggers.logger.DummyLogger):
    """Remembers what it was told, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[int] = []

    def log_metrics(self, metrics, step=None) -> None:
        if "train/loss" in metrics:
            self.told.append(step)


def played(folder, *callbacks, **options) -> L.Trainer:
    options = {"log_every_n_steps": 1, "default_root_dir": folder} | options
    with quiet():
        return fit(new_game(), 4, callbacks=callbacks, **options).trainer


def test_a_module_has_a_trainer_or_none(tmp_path):
    assert internals.trainer_of(new_game()) is None
    trainer = played(tmp_path)
    assert internals.trainer_of(trainer.lightning_module) is trainer


@pytest.mark.parametrize("steps", [False, True, 2])
def test_a_trial_is_one(steps):
    assert internals.is_trial(L.Trainer(accelerator="cpu", fast_dev_run=steps)) is bool(steps)


def test_a_step_is_logged_before_the_checkpoint_that_counts_it(tmp_path):
    logger = Logger()
    seen: list[list[int]] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            before = list(logger.told)
            internals.log_training_step(trainer)
            seen.append([len(before), len(logger.told)])

    played(tmp_path, Look(), logger=logger)
    assert seen == [[n, n + 1] for n in (0, 2, 4, 6)]  # Lightning says it again afterwards


def test_the_last_checkpoint_is_written_when_it_is_asked_for(tmp_path):
    checkpoint = GameCheckpoint(every_n_train_steps=1000, dirpath=str(tmp_path))
    looks = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            looks.append(internals.is_written(checkpoint, trainer))
            if trainer.global_step == 2:
                internals.write_last(checkpoint, trainer)
                looks.append(internals.is_written(checkpoint, trainer))
                content = torch.load(tmp_path / "last.ckpt", weights_only=True)
                assert content["global_step"] == 2

    trainer = played(tmp_path, checkpoint, Look(), enable_checkpointing=True)
    assert looks == [False, False, True, False, False]
    assert internals.is_written(checkpoint, trainer)  # at the end of a run


@pytest.mark.parametrize("batches", [0, 1])
def test_a_loop_goes_back_behind_a_batch(batches, tmp_path):
    """As a run that stops where its oracle has stopped: what a checkpoint then says of the loop."""
    counts = {}

    class Stop(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, number) -> None:
            progress = trainer.fit_loop.epoch_loop.batch_progress.total
            counts[number] = (progress.completed, progress.ready)
            if number == 3:
                internals.stand_behind_batch(trainer, batches)
                counts["after"] = (progress.completed, progress.ready)

    played(tmp_path, Stop())
    assert counts[3] == (3, 4)
    # Ready for the batch that is to be read again; the one before it is not completed yet.
    assert counts["after"] == (2 - batches, 3 - batches)


def test_who_plays_in_other_processes_is_told(tmp_path):
    assert not internals.is_played_elsewhere(L.Trainer(accelerator="cpu", logger=False))
    spread = L.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", logger=False)
    assert internals.is_played_elsewhere(spread)
