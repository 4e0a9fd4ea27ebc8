"""Where one of several processes fails or hangs, all end by a sentence that names it and its phase.

The processes of one machine hear of each other by their launcher, too; those of another machine by
what is told here alone.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
from typing_extensions import override

from nlhf_zoo.callbacks.notice_board import NoticeBoard, Verdict
from nlhf_zoo.callbacks.waiting import CHECKPOINT, STEP, UPDATE, Place, Waiting
from nlhf_zoo.errors import StoppedElsewhereError, UserError
from nlhf_zoo.game.lightning_internals import (
    end_children,
    exchanges_begun,
    failed_child,
    parent_process,
)
from nlhf_zoo.game.micro_batches import StepTimer, nobody_listens
from nlhf_zoo.game.online_game import OnlineGame
from nlhf_zoo.signals import StoppedBySignal

_PHASES = {"generate": "draw", "judge": "judge", "score": "score"}  # of a game's step
_EXIT_CODE = 2  # as of any command that says in one sentence what has ended it
_LOOKS = 3  # of the longest interval, within which a process that lives has given a sign
# How a process hears that another one has gone, or does not answer: from gloo, from NCCL, from
# torch's store.
LOST = re.compile(
    r"Connection (closed|reset) by peer|remote process exited|NCCL.*connection|Broken pipe", re.I
)
NO_ANSWER = re.compile(r"Timed out (?:waiting|after) (\d+) ?(ms|seconds)")


def _words(error: BaseException) -> tuple[str, int]:
    """What is told of an error, and the exit code, where nobody says it better."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}", 1


class HangWatch(L.Callback):
    """End a run of several processes where one fails or hangs, by a sentence that names it.

    Each process tells the others in which phase it is, draw, judge, score or update, and what has
    ended it. A thread in each looks where the others are. All of them end with exit code 2 where
    one has not moved for so many seconds, though another one is further; likewise where all have
    been in backward for so long, or where one gives no sign any more, for it was killed or stopped,
    or its machine has gone. One process alone is not watched.

    Args:
        seconds: how long a process may be waited for. Nobody waits for longer than the process
            group does, which is half an hour if it is given nothing else (`timeout` of a strategy).
        silence: for how many seconds the thread of a process may give no sign.
    """

    def __init__(self, seconds: float = 1500, silence: float = 120) -> None:
        for name, value in (("seconds", seconds), ("silence", silence)):
            if not 0 < value < math.inf:
                raise UserError(f"{name} of HangWatch must be some seconds, above 0, not {value}")
        self.seconds, self.silence = seconds, silence
        self.in_words: Callable[[BaseException], tuple[str, int]] = _words  # the command's own
        self._place = Place(0, 0, "setting up")
        self._timer = StepTimer()
        self._board: NoticeBoard | None = None
        self._thread: threading.Thread | None = None
        self._grace = 0.0  # seconds that others are given; set with the board
        self._ended = threading.Event()
        self._fails = False  # the watched thread ends this process itself
        self._verdict: Verdict | None = None
        self._decided = threading.Event()

    @property
    def phase(self) -> str:
        """The phase that this process is in."""
        return self._place.phase

    def enter(self, phase: str) -> None:
        """Note that this process enters a phase, and tell the others."""
        batch, part, *_ = self._place
        self._stand(Place(batch, part + 1, phase))

    def _stand(self, place: Place) -> None:
        self._place = place
        if self._board is not None:
            self._board.put(place._replace(exchanges=exchanges_begun()))

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or self._board is not None:
            return
        if isinstance(pl_module, OnlineGame):
            pl_module.timer.on_phase = self._enter_phase_of_game
            pl_module.timer.failed_in = None
            self._timer = pl_module.timer
        self._ended, self._decided = threading.Event(), threading.Event()
        self._fails, self._verdict = False, None
        longest = min(5.0, self.seconds / 10, self.silence / 10)
        # Once a second, and of hundreds of processes less often: the first one answers them all.
        interval = min(longest, max(1.0, trainer.world_size / 64))
        self._grace = _LOOKS * longest
        watched = threading.get_ident()

        def place() -> Place:
            return self._place._replace(code=_line_of(watched), exchanges=exchanges_begun())

        board = NoticeBoard(trainer.global_rank, trainer.world_size, place, interval)
        self._thread = threading.Thread(
            target=self._watch, args=(trainer, board), name="hang-watch", daemon=True
        )
        self._board = board
        self._thread.start()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end(self.silence)

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, StoppedBySignal | KeyboardInterrupt):
            self._end(0)
        else:
            self.conclude(trainer, exception)

    def conclude(self, trainer: L.Trainer, error: BaseException) -> Verdict | None:
        """What has ended the run where this process meets an error: that, or another process.

        The others are told. What another process has met, or was seen of it, is said here where
        nobody else says it; an error of this process's own is left to the caller.

        Returns:
            the verdict; None where nothing is known but the error.
        """
        if (board := self._board) is None:
            return self._verdict
        self._fails = True
        if _is_of_another(error):
            # What is known of it there, or the next looks will tell.
            self._decided.wait(2 * self._grace)
        else:
            words, code = self.in_words(error)
            failed_in = self._timer.failed_in or self._place.phase
            phase = _PHASES.get(failed_in, failed_in)
            place = self._place._replace(phase=phase)
            where = f"process {trainer.global_rank} of {trainer.world_size} failed in {place}: "
            if isinstance(error, SystemExit):  # of which nobody says more
                where, words = "", f"{where}{words}"
            self._decide(trainer, board, code, where, words)
        self._end(self._grace)
        return self._verdict

    def died(self, trainer: L.Trainer, process: int, code: int) -> bool:
        """Say that a process has died, by its exit code; whether it could be said."""
        if (board := self._board) is None:
            return False
        place = board.look.places.get(process)
        words = (
            f"process {process} of {trainer.world_size} has died"
            f"{f' in {place}' if place else ''} (exit code {code}): if memory ran out, make the "
            "batch smaller"
        )
        self._decide(trainer, board, _EXIT_CODE, "", words)
        return True

    def _end(self, seconds: float) -> None:
        """Watch no more; the first process waits for the others to hear of it."""
        self._timer.on_phase = nobody_listens
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None
        if self._board is not None:
            self._board.close()
            self._board.await_others(seconds)
            self._board = None

    # Where the process stands --------------------------------------------------------------------

    def _enter_phase_of_game(self, name: str | None) -> None:
        self.enter(_PHASES[name] if name else "the exchange of counts")

    def on_train_batch_start(self, *_: Any) -> None:
        """A training step begins."""
        self._stand(Place(self._place.batch + 1, 0, "the training step"))

    def on_before_backward(self, *_: Any) -> None:
        """The loss is computed."""
        self.enter(UPDATE)

    def on_after_backward(self, *_: Any) -> None:
        """Gradients are there."""
        self.enter(STEP)

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

    def _watch(self, trainer: L.Trainer, board: NoticeBoard) -> None:
        """Look where the others are, and end this process by what has ended the run."""
        waiting, looks = Waiting(self.seconds, self.silence), 0
        while not self._ended.wait(board.interval):
            if self._fails:  # the others may have to be silent for some looks only
                waiting.silence = min(self.silence, self._grace)
            look = board.look
            if look.number > looks and not look.lost:
                waiting.see(look.places, board.interval)
                self._verdict = look.verdict
            elif waiting.places:  # the first process keeps the store, and does not answer
                waiting.hear_nothing_of(0, board.interval)
                if look.lost:
                    waiting.silence = min(waiting.silence, self._grace)
            looks = look.number
            if self._verdict is None:
                self._judge(trainer, board, waiting)
            else:
                self._repeat(trainer, self._verdict)
            if self._verdict is not None:
                self._decided.set()
                if not self._fails:
                    self._leave(trainer, board, self._verdict)
                return

    def _judge(self, trainer: L.Trainer, board: NoticeBoard, waiting: Waiting) -> None:
        """End the run where a process has died, is silent, or hangs."""
        dead = failed_child(trainer) if self._fails else None
        if dead is not None and dead[1] < 0:
            self.died(trainer, *dead)
        elif waiting.silent() or waiting.hanging():
            words = waiting.sentence(trainer.global_rank)
            self._decide(trainer, board, _EXIT_CODE, "", words, waiting.silent())

    def _decide(
        self,
        trainer: L.Trainer,
        board: NoticeBoard,
        code: int,
        where: str,
        words: str,
        silent: list[int] | None = None,
    ) -> None:
        """Tell what has ended the run; and say it, where nobody was first, and it is no error."""
        mine = Verdict(trainer.global_rank, trainer.node_rank, code, where, words)
        if 0 in (silent or []):
            # Nothing can be told by the store: of each machine's processes one says it.
            speaks = trainer.local_rank == (1 if trainer.node_rank == 0 else 0)
            self._verdict = mine if speaks else mine._replace(by=-1)
        else:
            self._verdict = board.decide(mine)
        if self._verdict == mine and not where:
            _say(mine)
        elif self._verdict != mine:
            self._repeat(trainer, self._verdict)

    def _repeat(self, trainer: L.Trainer, verdict: Verdict) -> None:
        """Say what a process of another machine has said: nobody here may see it there."""
        if verdict.by >= 0 and verdict.node != trainer.node_rank and trainer.local_rank == 0:
            _say(verdict)

    def _leave(self, trainer: L.Trainer, board: NoticeBoard, verdict: Verdict) -> NoReturn:
        """End this process, and those that it has started or was started by."""
        time.sleep(self._grace / _LOOKS)  # for who speaks
        board.close()
        if trainer.global_rank == 0:
            board.await_others(self._grace)
        if trainer.local_rank == 0:
            end_children(trainer)
        elif (parent := parent_process(trainer)) is not None:
            time.sleep(2 * self._grace)  # by then it has ended this one, or hangs
            if os.getppid() == parent:
                if verdict.where and verdict.by == trainer.global_rank - trainer.local_rank:
                    _say(verdict)  # it has not come to say so itself
                os.kill(parent, signal.SIGKILL)
        os._exit(verdict.code)


def _say(verdict: Verdict) -> None:
    print(f"nlhf: error: {verdict.sentence}", file=sys.stderr, flush=True)


def _is_of_another(error: BaseException) -> bool:
    """Whether an error only says that another process has ended, or does not answer."""
    said = str(error)
    return isinstance(error, StoppedElsewhereError) or (
        isinstance(error, RuntimeError) and bool(LOST.search(said) or NO_ANSWER.search(said))
    )


def _line_of(thread: int) -> str:
    """The file and the line that a thread is in."""
    frame = sys._current_frames().get(thread)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "ended"
