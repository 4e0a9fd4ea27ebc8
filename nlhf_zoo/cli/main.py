"""The command line: ``nlhf fit | validate | test | predict | doctor | oracle | export | ...``.

Nothing heavy is imported before it is known which command runs: ``nlhf --help`` answers without
torch.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from nlhf_zoo import __version__
from nlhf_zoo.cli.errors import end
from nlhf_zoo.errors import UserError
from nlhf_zoo.signals import ending_at_signals

_HELP = f"""nlhf {__version__}: Nash learning from human feedback

usage: nlhf COMMAND [options]

  fit       train a policy in the online game:   nlhf fit --config configs/tabular/nash_mp.yaml
  validate  evaluate a checkpoint:               nlhf validate --config ... --ckpt_path ...
  test      likewise, on the test prompts
  predict   the probabilities of all responses
  init      a commented configuration from four answers:  nlhf init
  doctor    check what goes wrong silently:      nlhf doctor --config ...
  oracle    what an oracle says of sample responses, before anyone trains against it
  serve-oracle  an oracle behind HTTP, for several processes and machines: nlhf serve-oracle CONFIG
  export    write an adapter or a merged model:  nlhf export --ckpt ... --output DIR
  certify   how exploitable a policy is:         nlhf certify RUN --oracle ... --prompts FILE
  sample    what a policy says:                  nlhf sample RUN --prompt TEXT
  evaluate  who wins of two, and how often:      nlhf evaluate RUN --against reference ...
  tournament  who beats whom: runs, adapters, models and answers against each other
  solve     the equilibrium of a table or of votes, with its certificate
  compare   several algorithms, seeds and games on one budget: table, CSV, figure
  bench     an algorithm beside all of ours, on a fixed set of games:  nlhf bench
  cite      BibTeX of what a configuration runs:  nlhf cite CONFIG
  from-trl  a configuration from one of TRL's, line by line:  nlhf from-trl script.py
  ask       a page on which people choose between two answers:  nlhf ask RUN | FILE
  report    one page for runs, which works offline:  nlhf report RUN ... --output report.html

nlhf COMMAND --help tells a command's options, `nlhf fit --model.algorithm.help NashMP` a class's.
"""
_TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
# Each a module of that name.
_COMMANDS = (
    "init",
    "doctor",
    "oracle",
    "serve-oracle",
    "export",
    "solve",
    "compare",
    "report",
    "cite",
    "from-trl",
    "bench",
    "sample",
    "certify",
    "evaluate",
    "tournament",
)

# Those that start without what a look at other options takes, and say themselves what is wrong.
_LIGHT = ("ask",)


@ending_at_signals()
def main(args: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        args: the command and its options; those of the process if they are not given.

    Raises:
        SystemExit: with code 2 and one sentence on standard error for a mistake of the user's
            making; with 70, and the name of the file that holds the traceback, for what was not
            expected; with 143 and 130 where SIGTERM and SIGINT have ended it.
    """
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP, end="")
        return
    if argv[0] == "--version":
        print(f"nlhf {__version__}")
        return
    command, *rest = argv
    # Where one of several processes has died, c10d of torch 2.13 shows the others' stacks in C++.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        # Once torch is there, classes may be that no source of ours tells of.
        if command in (*_TRAINER_COMMANDS, *_COMMANDS) and "torch" not in sys.modules:
            from nlhf_zoo.cli.early import refuse_early

            refuse_early(rest, command)
        if command in _TRAINER_COMMANDS:
            with _no_collection():
                from nlhf_zoo.cli.trainer import run
            run(argv)
        elif command in (*_COMMANDS, *_LIGHT):
            with _no_collection():
                module = import_module(f"nlhf_zoo.cli.{command.replace('-', '_')}")
            module.main(rest)
        else:
            known = ", ".join([*_TRAINER_COMMANDS, *_COMMANDS, *_LIGHT])
            raise UserError(f"{command!r} is no command of nlhf: choose one of {known}")
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        end(error)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Import torch and the like without looking for garbage: that takes a fifth of the time."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is imported stays; to look through it later would take as long
        gc.enable()
