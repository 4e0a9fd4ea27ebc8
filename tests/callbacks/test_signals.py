"""A run that is asked to end does so within a step, with a checkpoint, and goes on bit for bit."""

import copy
import functools
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import runs
from preference_runs import configuration as preference_model
from zoo import fit, small_game

from nlhf_zoo import EGPO, GameCheckpoint, GradientSteps
from nlhf_zoo.cli.quiet import quiet
from nlhf_zoo.game import lightning_internals as internals
from nlhf_zoo.signals import ENDING, SignalWatch, StoppedBySignal

TERM, INT = ENDING
CODES = {TERM: 143, INT: 130}


def send_at(place: str, call: int, *signals: int, process: int = 0) -> None:
    """Send this process, or another of its kind, signals at a call of a function; none later."""
    signal.signal(INT, signal.default_int_handler)  # which a shell's background would ignore
    import lightning as L

    from nlhf_zoo.algorithms.closed_form import ClosedFormRounds
    from nlhf_zoo.callbacks import GameCheckpoint, ResumeState
    from nlhf_zoo.game.online_game import OnlineGame
    from nlhf_zoo.oracles.tables.base import TableOracle

    places: dict[str, tuple[type, str]] = {
        "made": (OnlineGame, "__init__"),
        "begun": (ResumeState, "on_train_start"),
        "asked": (TableOracle, "forward"),
        "scored": (OnlineGame, "improve"),
        "backward": (OnlineGame, "on_after_backward"),
        "stepped": (L.LightningModule, "optimizer_step"),
        "validated": (OnlineGame, "validation_step"),
        "saved": (L.Trainer, "save_checkpoint"),
        "ended": (GameCheckpoint, "on_train_batch_end"),
        "rounds": (ClosedFormRounds, "run"),
    }
    owner, name = places[place]
    original, calls = getattr(owner, name), [0]

    @functools.wraps(original)
    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and process == int(os.environ.get("LOCAL_RANK", "0")):
            for signum in signals:
                os.kill(os.getpid(), signum)
        return original(self, *args, **kwargs)

    setattr(owner, name, patched)


def rarely(config: dict[str, Any]) -> dict[str, Any]:
    """No checkpoints but those of a stop, and of the end; no bar, which a slow run shows."""
    config = copy.deepcopy(config)
    config["trainer"]["enable_progress_bar"] = False
    config["trainer"]["callbacks"][-1]["init_args"]["every_n_train_steps"] = 1000
    return config


def stops(folder: Path, signum: int, before: Any, *args: str) -> None:
    """The run ends by a signal, with its code and its sentence."""
    run = runs.fit(folder, *args, before=before)
    assert run.code == CODES[signum], run.err
    assert run.sentence == f"nlhf: stopped by {signal.Signals(signum).name}"
    assert "Traceback" not in run.err
    assert len(run.err.strip().splitlines()) <= 2, run.err  # where the checkpoint lies, before it


# Two calls of the table in a step of the optimistic one; the one of EGPO accumulates two batches.
TRIALS = [
    ("sampled-optimistic_mirror_descent", "asked", 7, TERM),
    ("sampled-egpo", "stepped", 5, INT),
]
MORE = [
    ("closed-nash_mp", "rounds", 3, TERM),
    ("sampled-optimistic_mirror_descent", "asked", 1, INT),
    ("sampled-egpo", "asked", 6, TERM),
    ("sampled-egpo", "scored", 7, INT),
    ("sampled-nash_mp", "backward", 6, TERM),
    ("sampled-nash_mp", "ended", 4, TERM),
    ("mlp-nash_mp", "stepped", 9, INT),
    ("enumerated-optimistic", "scored", 3, TERM),
    ("closed-egpo", "ended", 2, INT),
    ("language-nash_mp", "asked", 5, TERM),
    ("language-nash_mp", "backward", 3, INT),
    ("language-egpo", "stepped", 7, TERM),
]


def stopped_and_resumed(folder: Path, name: str, place: str, call: int, signum: int) -> None:
    config = rarely(runs.CASES[name])
    whole, stopped = folder / "whole", folder / "stopped"
    runs.whole_run(whole, config)
    runs.write(stopped, config)
    stops(stopped, signum, functools.partial(send_at, place, call, signum))
    steps = runs.load(stopped)["global_step"]
    assert 0 <= steps < runs.load(whole)["global_step"]
    assert runs.fit(stopped, *runs.LAST).code == 0
    runs.assert_same_game(whole, stopped)


@pytest.mark.parametrize(("name", "place", "call", "signum"), TRIALS)
def test_a_stopped_run_goes_on(name: str, place: str, call: int, signum: int, tmp_path: Path):
    stopped_and_resumed(tmp_path, name, place, call, signum)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place", "call", "signum"), MORE)
def test_a_stopped_run_goes_on_from_anywhere(
    name: str, place: str, call: int, signum: int, tmp_path: Path
):
    stopped_and_resumed(tmp_path, name, place, call, signum)


def test_a_stop_in_validation(tmp_path: Path):
    config = rarely(runs.CASES["sampled-nash_mp"])
    config["trainer"] |= {"val_check_interval": 2, "check_val_every_n_epoch": None}
    config["trainer"] |= {"limit_val_batches": 1}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    runs.whole_run(whole, config)
    runs.write(stopped, config)
    stops(stopped, TERM, functools.partial(send_at, "validated", 2, TERM))
    assert runs.fit(stopped, *runs.LAST).code == 0
    runs.assert_same_game(whole, stopped, logs=False)


@pytest.mark.parametrize(("place", "signals"), [("made", (TERM,)), ("backward", (INT, INT))])
def test_nothing_is_saved_before_the_first_step_and_at_a_second_signal(place, signals, tmp_path):
    runs.write(tmp_path, rarely(runs.CASES["sampled-nash_mp"]))
    run = runs.fit(tmp_path, before=functools.partial(send_at, place, 1, *signals))
    assert run.code == CODES[signals[0]]
    assert "Traceback" not in run.err
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("process", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_two_processes_stop_together(process: int, tmp_path: Path):
    config = rarely(runs.CASES["sampled-nash_mp"])
    config["trainer"] |= {"devices": 2, "strategy": "ddp_fork"}
    config["data"] = runs.part("TablePrompts", batch_size=2)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    runs.whole_run(whole, config)
    runs.write(stopped, config)
    stops(stopped, TERM, functools.partial(send_at, "asked", 7, TERM, process=process))
    assert runs.load(stopped)["global_step"] == 6
    assert runs.fit(stopped, *runs.LAST).code == 0
    runs.assert_same_game(whole, stopped)


def test_training_a_preference_model_stops(tmp_path: Path):
    config = preference_model(tmp_path)
    config["trainer"]["callbacks"] = [runs.part("GameCheckpoint", every_n_train_steps=1000)]
    runs.write(tmp_path, config)
    stops(tmp_path, TERM, functools.partial(send_at, "stepped", 3, TERM))
    (saved,) = tmp_path.rglob("last.ckpt")
    assert runs.fit(tmp_path, "--ckpt_path", str(saved)).code == 0


def handlers() -> list[Any]:
    return [signal.getsignal(signum) for signum in ENDING]


def train(folder: Path, *callbacks: Any) -> None:
    checkpoint = GameCheckpoint(dirpath=str(folder))
    options = {"callbacks": [*callbacks, checkpoint], "enable_checkpointing": True}
    with quiet():
        game = small_game(EGPO(), realisation=GradientSteps())
        fit(game, 2, default_root_dir=folder, **options)


def test_handlers_are_put_back(tmp_path):
    before = handlers()
    train(tmp_path)
    assert handlers() == before


def test_a_run_in_a_thread_installs_nothing(tmp_path):
    before, found = handlers(), []

    class Look(GameCheckpoint):
        def on_train_batch_end(self, *args: Any) -> None:
            found.append(handlers())
            super().on_train_batch_end(*args)

    thread = threading.Thread(target=train, args=(tmp_path / "one", Look(dirpath=str(tmp_path))))
    thread.start()
    thread.join()
    assert found == [before] * 4
    assert (tmp_path / "last.ckpt").is_file()


def test_the_watch():
    watch, again = SignalWatch(), []
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in ENDING}
    signal.signal(INT, signal.SIG_IGN)
    try:
        assert set(watch.install(again=again.append)) == {TERM}  # what is ignored stays so
        os.kill(os.getpid(), TERM)
        assert watch.received == TERM
        os.kill(os.getpid(), TERM)
        assert again == [TERM]
        with pytest.raises(StoppedBySignal) as end, watch.raising():
            pytest.fail("what came before is raised first")
        assert end.value.code == 143
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_the_signal_of_slurm_stays_lightnings(monkeypatch):
    import lightning as L
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    for requeue, ours in ((True, [INT]), (False, [TERM, INT])):
        environment = SLURMEnvironment(auto_requeue=requeue, requeue_signal=TERM)
        trainer = L.Trainer(accelerator="cpu", devices=1, plugins=[environment], logger=False)
        assert internals.signals_of_ours(trainer, ENDING) == ours
