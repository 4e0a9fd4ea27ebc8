"""Where one of several processes hangs, the run ends by a sentence that names it and its phase."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import lightning as L
from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store
from typing_extensions import override

from nlhf_zoo.errors import UserError
from nlhf_zoo.game.lightning_internals import end_children, parent_process, process_group_store
from nlhf_zoo.game.micro_batches import StepTimer, nobody_listens
from nlhf_zoo.game.online_game import OnlineGame

BACKWARD = "backward and the exchange of gradients"
CHECKPOINT = "writing a checkpoint"
_TOGETHER = (BACKWARD, CHECKPOINT)  # in the midst of which processes wait for each other
_PHASES = {"generate": "drawing", "judge": "judging", "score": "scoring"}  # of a game's step
_EXIT_CODE = 2  # as of any command that says in one sentence what has ended it
_VERDICT = "verdict"


class Place(NamedTuple):
    """Where a process stands; all of a run go through the same places, in the same order."""

    batch: int
    part: int  # of a batch
    phase: str
    code: str = ""  # the line of code


@dataclass
class Waiting:
    """Who is behind the others, and for how long it has not moved meanwhile.

    Time is added up, and not read from a clock: a run that is stopped and continued as a whole, or
    a machine that slept, hangs nowhere.
    """

    seconds: float  # that a process may be waited for
    places: dict[int, Place] = field(default_factory=dict)
    _still: dict[int, float] = field(default_factory=dict)

    def see(self, places: dict[int, Place], passed: float) -> None:
        """Note where processes stand, so many seconds after the last time."""
        before, self.places = self.places, self.places | places
        was_behind, self._still = self._still, {}
        for process in self._behind():
            waits = process in was_behind and self.places[process][:2] == before[process][:2]
            self._still[process] = was_behind[process] + passed if waits else 0.0

    def hanging(self) -> list[int]:
        """The processes that have been waited for too long."""
        behind = self._behind()
        return behind if all(self._still[process] >= self.seconds for process in behind) else []

    def _behind(self) -> list[int]:
        """The last of all; where none is, all that are where they wait for each other."""
        last = min(place[:2] for place in self.places.values())
        behind = [process for process, place in self.places.items() if place[:2] == last]
        is_waited_for = len(behind) < len(self.places)
        together = len(behind) > 1 and self.places[behind[0]].phase in _TOGETHER
        return behind if is_waited_for or together else []

    def sentence(self) -> str:
        """Which processes hang, and where."""
        hanging, number = self.hanging(), len(self.places)
        place = self.places[hanging[0]]
        step = f"training step {place.batch}"
        if len(hanging) < number:
            names = " and ".join(map(str, hanging))
            lines = ", ".join(self.places[process].code for process in hanging)
            who = f"process {names} of {number} hangs, last seen in {place.phase} ({step}, {lines})"
            since = f"others have waited for it for {self.seconds:g} seconds"
        else:
            lines = ", ".join(f"process {p} at {self.places[p].code}" for p in hanging)
            who = f"one of {number} processes hangs in {place.phase} ({step})"
            since = f"for {self.seconds:g} seconds these have stood: {lines}"
        return (
            f"{who}: {since}; if it needs longer, give --trainer.callbacks+ HangWatch "
            "--trainer.callbacks.seconds more"
        )


class HangWatch(L.Callback):
    """End a run of several processes where one hangs, by a sentence that names it and its phase.

    A thread in each process tells the others where it stands. Where one has not moved for so many
    seconds, though another one is further, all of them end with exit code 2; likewise where all
    have been in backward for so long. One process alone is not watched.

    Args:
        seconds: how long a process may be waited for. Nobody waits for longer than the process
            group does, which is half an hour if it is given nothing else (`timeout` of a strategy).
    """

    def __init__(self, seconds: float = 1500) -> None:
        if not 0 < seconds < math.inf:
            raise UserError(f"HangWatch waits for some seconds, above 0, not {seconds}")
        self.seconds = seconds
        self._place = Place(0, 0, "setting up")
        self._timer = StepTimer()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    @property
    def phase(self) -> str:
        """The phase that this process is in."""
        return self._place.phase

    def enter(self, phase: str) -> None:
        """Note that this process enters a phase."""
        batch, part, *_ = self._place
        self._place = Place(batch, part + 1, phase)

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or self._thread is not None:
            return
        if isinstance(pl_module, OnlineGame):
            pl_module.timer.on_phase = self._enter_phase_of_game
            self._timer = pl_module.timer
        self._ended.clear()
        interval = min(5.0, self.seconds / 10)
        store = process_group_store("nlhf_hang_watch", timedelta(seconds=max(1.0, interval)))
        watched = threading.get_ident()
        place = self._place._replace(code=_line_of(watched))
        store.set(str(trainer.global_rank), json.dumps(place))  # before it may hang
        self._thread = threading.Thread(
            target=self._watch,
            args=(trainer, store, watched, interval),
            name="hang-watch",
            daemon=True,
        )
        self._thread.start()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end()

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._timer.on_phase = nobody_listens
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=10)  # it may be asking the first process, which has gone
            self._thread = None

    # Where the process stands --------------------------------------------------------------------

    def _enter_phase_of_game(self, name: str | None) -> None:
        self.enter(_PHASES[name] if name else "the exchange of counts")

    def on_train_batch_start(self, *_: Any) -> None:
        """A training step begins."""
        self._place = Place(self._place.batch + 1, 0, "the training step")

    def on_before_backward(self, *_: Any) -> None:
        """The loss is computed."""
        self.enter(BACKWARD)

    def on_after_backward(self, *_: Any) -> None:
        """Gradients are there."""
        self.enter("the optimiser's step")

    def on_train_batch_end(self, *_: Any) -> None:
        """What other callbacks do follows, and the next batch is read."""
        self.enter("logging, or reading the next batch")

    def on_save_checkpoint(self, *_: Any) -> None:
        """A checkpoint is about to be written."""
        self.enter(CHECKPOINT)

    def on_validation_batch_start(self, *_: Any) -> None:
        """A batch is evaluated."""
        self.enter("validation")

    def on_validation_batch_end(self, *_: Any) -> None:
        """It is; figures are averaged over the processes at the end of all."""
        self.enter("the exchange of figures")

    @override
    def on_test_batch_start(self, *_: Any) -> None:
        self.enter("the test")

    @override
    def on_predict_batch_start(self, *_: Any) -> None:
        self.enter("prediction")

    # The thread ---------------------------------------------------------------------------------

    def _watch(self, trainer: L.Trainer, store: Store, watched: int, interval: float) -> None:
        """Tell the others where the thread ``watched`` stands, and look where they are."""
        here, waiting = trainer.global_rank, Waiting(self.seconds)
        others = [process for process in range(trainer.world_size) if process != here]
        while not self._ended.wait(interval):
            place = self._place._replace(code=_line_of(watched))
            try:
                store.set(str(here), json.dumps(place))
                if store.check([_VERDICT]):
                    _leave(trainer, interval)
                places = {
                    process: Place(*json.loads(store.get(str(process))))
                    for process in others
                    if store.check([str(process)])
                }
            except DistError:  # the first process keeps the store, and may hang
                places = {}
            waiting.see({here: place, **places}, interval)
            if waiting.hanging():
                self._judge(trainer, store, waiting, interval)

    def _judge(
        self, trainer: L.Trainer, store: Store, waiting: Waiting, interval: float
    ) -> NoReturn:
        """Say which process hangs, once, and end this one."""
        try:
            mine = str(trainer.global_rank)
            is_first = store.compare_set(_VERDICT, "", mine).decode() == mine
        except DistError:
            is_first = True
        if is_first:
            print(f"nlhf: error: {waiting.sentence()}", file=sys.stderr, flush=True)
        _leave(trainer, interval)


def _leave(trainer: L.Trainer, interval: float) -> NoReturn:
    """End this process, and those that it has started or was started by."""
    if trainer.global_rank == 0:
        time.sleep(3 * interval)  # until the others have seen it: the store ends with this one
        end_children(trainer)
    elif (parent := parent_process(trainer)) is not None:
        time.sleep(6 * interval)  # by then it has ended this one, unless it hangs itself
        if os.getppid() == parent:
            os.kill(parent, signal.SIGKILL)
    os._exit(_EXIT_CODE)


def _line_of(thread: int) -> str:
    """The file and the line that a thread is in."""
    frame = sys._current_frames().get(thread)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "ended"
