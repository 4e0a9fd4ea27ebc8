"""Runs of the command line in processes of their own, which may be killed.

Importing torch and lightning takes seconds, and so do the parsers of a configuration; a server does
it once (``forked_server.py``), and each run is a fork of it.
"""

import multiprocessing
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import forkserver
from pathlib import Path

from paths import ROOT

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["forked_server"])
KILLED = -9


@dataclass(frozen=True)
class Run:
    """How a run ended."""

    code: int | None
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The last line on standard error."""
        return (self.err.strip().splitlines() or [""])[-1]


@cache
def _serve() -> None:
    """Start the server, which finds its modules by the environment alone."""
    given = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), *([given] if given else [])])
    forkserver.ensure_running()
    del os.environ["PYTHONPATH"]
    if given:
        os.environ["PYTHONPATH"] = given


def nlhf(
    *args: str, folder: Path, before: Callable[[], None] | None = None, timeout: float = 240
) -> Run:
    """Run ``nlhf args`` in a folder, in a process of its own, for ``timeout`` seconds at most.

    That process calls ``before`` first, to plant a fault: a function of a module, or a partial.
    """
    return ended(started(*args, folder=folder, before=before), folder, timeout)


def started(
    *args: str, folder: Path, before: Callable[[], None] | None = None
) -> multiprocessing.process.BaseProcess:
    """A run that goes on; what it says is in the files `.stdout` and `.stderr` of its folder."""
    return _started(partial(_command, args, before), folder, folder)


def _started(
    work: Callable[[], None], folder: Path, streams: Path
) -> multiprocessing.process.BaseProcess:
    for each in (folder, streams):
        each.mkdir(parents=True, exist_ok=True)
    _serve()
    process = _CONTEXT.Process(target=_main, args=(work, folder, streams))
    process.start()
    return process


def ended(process: multiprocessing.process.BaseProcess, folder: Path, timeout: float = 240) -> Run:
    """How a run ends that was started."""
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"a run did not end: {(folder / '.stderr').read_text()}")
    texts = [path.read_text(errors="replace") for path in (folder / ".stdout", folder / ".stderr")]
    for name in (".stdout", ".stderr"):
        (folder / name).unlink()
    return Run(process.exitcode, *texts)


def nlhf_ranks(
    num: int,
    *args: str,
    folder: Path,
    before: Callable[[], None] | None = None,
    timeout: float = 120,
) -> list[Run]:
    """Run ``nlhf args`` in so many processes of one run.

    They are forks, where Lightning would start processes that import all anew.
    """
    return in_ranks(num, partial(_command, args, before), folder, timeout)


def in_ranks(num: int, work: Callable[[], None], folder: Path, timeout: float = 120) -> list[Run]:
    """Do something in so many processes, which find each other over a port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    streams = [folder / f".rank{rank}" for rank in range(num)]
    processes = [
        _started(partial(_as_rank, rank, num, port, work), folder, place)
        for rank, place in enumerate(streams)
    ]
    ends = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, ends - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    runs = [ended(*each) for each in zip(processes, streams, strict=True)]
    if late:
        raise TimeoutError("\n".join(["a process did not end:", *(run.err for run in runs)]))
    return runs


def _as_rank(rank: int, num: int, port: int, work: Callable[[], None]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    work()


def _command(args: Sequence[str], before: Callable[[], None] | None) -> None:
    from nlhf_zoo.cli.main import main

    sys.argv = ["nlhf", *args]
    if before is not None:
        before()
    main(list(args))


def _main(work: Callable[[], None], folder: Path, streams: Path) -> None:
    os.chdir(folder)
    for stream, name in ((1, ".stdout"), (2, ".stderr")):
        os.dup2(os.open(streams / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    assert "forked_server" in sys.modules  # else each run pays for what the server has not done

    import torch
    from tqdm import tqdm

    # Its own lock is a semaphore, which a killed process would leave behind.
    tqdm.set_lock(threading.RLock())
    torch.set_num_threads(1)  # many small runs: threads would only wait for each other
    code: object = 0
    try:
        work()
    except SystemExit as end:
        code = end.code
        if end.__cause__ is not None:  # unexpected: its traceback is in a file, and is wanted here
            traceback.print_exception(end.__cause__)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)
