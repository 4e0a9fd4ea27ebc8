"""How a run of several processes ends where one of them does: by what that one has said."""

from __future__ import annotations

import sys
from functools import partial

import lightning as L
from torch.multiprocessing.spawn import ProcessExitedException

from nlhf_zoo.callbacks import HangWatch
from nlhf_zoo.callbacks.hang_watch import LOST, NO_ANSWER
from nlhf_zoo.cli import errors
from nlhf_zoo.errors import UserError
from nlhf_zoo.game.launchers import end_as_the_first_to_fail
from nlhf_zoo.game.lightning_internals import (
    codes_of_launched,
    end_children,
    failed_child,
    has_launcher,
    raise_process_group_time_out,
)
from nlhf_zoo.signals import ENDING, StoppedBySignal


def prepare(trainer: L.Trainer) -> None:
    """Have the processes of a trainer end together, and wait for each other as they were told."""
    end_as_the_first_to_fail(trainer, partial(end_of, trainer), partial(code_for, trainer))
    for watch in _watches(trainer):
        watch.in_words = errors.in_words
        raise_process_group_time_out(trainer, 1.2 * watch.seconds)


def code_for(trainer: L.Trainer, process: int, code: int) -> int:
    """The exit code of a run one of whose processes has ended with this one.

    That process has said why, but where it was killed.
    """
    if code > 0:
        return code
    if not any(watch.died(trainer, process, code) for watch in _watches(trainer)):
        sentence = (
            f"process {process} of {trainer.world_size} has died (exit code {code}): if memory ran "
            "out, make the batch smaller"
        )
        print(f"nlhf: error: {sentence}", file=sys.stderr, flush=True)
    return errors.USER


def end_of(trainer: L.Trainer, error: Exception) -> BaseException:
    """What ends this process where it meets an error; of several, one says what has ended them all.

    Returns:
        the error itself in a process that is alone; else what the command is to raise.

    Raises:
        SystemExit: all that is to be said is said.
    """
    for watch in _watches(trainer):
        if (verdict := watch.conclude(trainer, error)) is None:
            continue
        if verdict.where and verdict.by == trainer.global_rank:
            errors.end(error, verdict.where)
        raise SystemExit(verdict.code)
    return _end_of_others(trainer, error) if isinstance(error, RuntimeError) else error


def _end_of_others(trainer: L.Trainer, error: RuntimeError) -> BaseException:
    """What ends this process where an error says that another one has ended, or does not answer."""
    if silence := NO_ANSWER.search(str(error)):
        number, unit = silence.groups()
        seconds = int(number) / (1000 if unit == "ms" else 1)
        where = [f" in {watch.phase}" for watch in _watches(trainer)]
        end_children(trainer)  # which may not have come so far as to hear of this one's end
        return UserError(
            f"process {trainer.global_rank} has waited for another one for {seconds:g} seconds"
            f"{''.join(where)}: one hangs, or they do not reach each other; if it needs longer, "
            "give trainer.strategy a longer timeout"
        )
    if not LOST.search(str(error)):
        return error
    if has_launcher(trainer):
        return SystemExit(errors.USER)
    found = failed_child(trainer, seconds=10)
    return error if found is None else SystemExit(code_for(trainer, *found))


def end_of_launched(trainer: L.Trainer, error: ProcessExitedException) -> BaseException:
    """What ends the process that has started those that play, where one of these has ended."""
    ends = [signum for signum in ENDING if error.exit_code in (128 + signum, -signum)]
    if ends:
        return StoppedBySignal(ends[0])
    # Where one has died, another one may have said so.
    said = (errors.USER, errors.UNEXPECTED)
    spoken = [code for code in codes_of_launched(trainer) if code in said]
    if spoken and error.exit_code < 0:
        return SystemExit(spoken[0])
    return SystemExit(code_for(trainer, error.error_index, error.exit_code))


def _watches(trainer: L.Trainer) -> list[HangWatch]:
    callbacks = list(trainer.callbacks)  # type: ignore[attr-defined]  # its connector sets them
    return [callback for callback in callbacks if isinstance(callback, HangWatch)]
