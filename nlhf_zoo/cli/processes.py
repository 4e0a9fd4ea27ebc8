"""How a run of several processes ends where one of them does: by what that one has said."""

from __future__ import annotations

import re
import sys
from functools import partial

import lightning as L
from torch.multiprocessing.spawn import ProcessExitedException

from nlhf_zoo.callbacks import HangWatch
from nlhf_zoo.cli.errors import USER
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.launchers import end_as_the_first_to_fail
from nlhf_zoo.game.lightning_internals import (
    code_of_child,
    end_children,
    has_launcher,
    raise_process_group_time_out,
)
from nlhf_zoo.signals import ENDING, StoppedBySignal

# How a process hears that another one has gone, and that it does not answer: from gloo, from NCCL,
# from torch's store.
_LOST = re.compile(
    r"Connection (closed|reset) by peer|remote process exited|NCCL.*connection", re.I
)
_NO_ANSWER = re.compile(r"Timed out (?:waiting|after) (\d+) ?(ms|seconds)")


def prepare(trainer: L.Trainer) -> None:
    """Have the processes of a trainer end together, and wait for each other as they were told."""
    end_as_the_first_to_fail(trainer, partial(end_of_others, trainer), code_for)
    for watch in _watches(trainer):
        raise_process_group_time_out(trainer, 1.2 * watch.seconds)


def code_for(code: int) -> int:
    """The exit code of a run one of whose processes has ended with this one.

    That process has said why, but where it was killed.
    """
    if code > 0:
        return code
    print(f"nlhf: error: {_died(code)}", file=sys.stderr, flush=True)
    return USER


def _died(code: int) -> str:
    return (
        f"a process of this run has died (exit code {code}): if memory ran out, make the batch "
        "smaller"
    )


def end_of_others(trainer: L.Trainer, error: RuntimeError) -> BaseException:
    """What ends this process where an error says that another one has ended, or does not answer."""
    if silence := _NO_ANSWER.search(str(error)):
        number, unit = silence.groups()
        seconds = int(number) / (1000 if unit == "ms" else 1)
        where = [f" in {watch.phase}" for watch in _watches(trainer)]
        end_children(trainer)  # which may not have come so far as to hear of this one's end
        return UserError(
            f"process {trainer.global_rank} has waited for another one for {seconds:g} seconds"
            f"{''.join(where)}: one hangs, or they do not reach each other; if it needs longer, "
            "give trainer.strategy a longer timeout"
        )
    if not _LOST.search(str(error)):
        return error
    if has_launcher(trainer):
        return SystemExit(USER)
    code = code_of_child(trainer, seconds=10)
    return error if code is None else SystemExit(code_for(code))


def end_of_launched(error: ProcessExitedException) -> BaseException:
    """What ends the process that has started those that play, where one of these has ended."""
    ends = [signum for signum in ENDING if error.exit_code in (128 + signum, -signum)]
    return StoppedBySignal(ends[0]) if ends else SystemExit(code_for(error.exit_code))


def _watches(trainer: L.Trainer) -> list[HangWatch]:
    callbacks = list(trainer.callbacks)  # type: ignore[attr-defined]  # its connector sets them
    return [callback for callback in callbacks if isinstance(callback, HangWatch)]
