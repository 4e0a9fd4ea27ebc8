"""``nlhf ask``: questions for people, from a run or a file, and the page on which they answer.

It starts with what comes with Python: neither torch nor numpy, nor a parser of YAML.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from nlhf_zoo.cli.ask.exporting import export, export_pairs, summary
from nlhf_zoo.cli.outputs import refuse_output
from nlhf_zoo.errors import UserError, nearest
from nlhf_zoo.people import VoteStore
from nlhf_zoo.people.server import PeopleServer, is_loopback
from nlhf_zoo.signals import SignalWatch, StoppedBySignal, end_at_once

NAME = "people.sqlite"  # in the folder of a run
_FORMATS = ("columns", "hh", "sharegpt", "arena")
_HELP = """usage: nlhf ask RUN | FILE.sqlite | FILE.jsonl [options]

A page on which people choose between two answers. RUN is the folder of a run that asks people,
FILE.sqlite its file of questions and votes, FILE.jsonl a file of pairs, {"prompt": "...",
"first": "...", "second": "..."} or with chosen and rejected, or of responses, {"prompt": "...",
"responses": ["...", "..."]} or what `nlhf sample` writes; its questions are put into FILE.sqlite.

  --votes N             votes that are wanted of each pair of FILE.jsonl (default: 1)
  --pairs_per_prompt N  of responses: as many pairs, in which each stands about equally often
                        (default: all)
  --format FORMAT       of pairs: columns, hh, sharegpt, arena (default: columns)
  --unusable WHAT       refuse or drop rows that are no pair to choose from (default: refuse)
  --seed_everything N   of the pairs that are chosen (default: 0)
  --output FILE         where the questions and votes of FILE.jsonl lie (default: FILE.sqlite)
  --host HOST           an address of this machine (default: 127.0.0.1, for this machine alone)
  --port PORT           (default: 8770; 0 takes a free one)
  --summary             print how far people are and how far they agree, and end
  --export FILE         write all votes as JSONL, those that were undone among them, and end
  --pairs FILE          write the votes that count as pairs for `nlhf fit`, and end

Whoever has the address that is printed may vote. SIGINT (Ctrl-C) and SIGTERM end the page: no vote
is lost, and the same command goes on with the same address.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are sentences."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise UserError(f"nlhf ask: {message}")


def main(args: list[str]) -> None:
    """Run ``nlhf ask`` with what stands behind it on the command line."""
    if not args or {"-h", "--help"} & {*args}:
        print(_HELP, end="")
        return
    given = _parse(args)
    store = _store(given)
    try:
        if not _write(store, given):
            _serve(store, given.host, given.port)
    finally:
        store.end()


def _parse(args: list[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("what", type=Path)
    parser.add_argument("--votes", type=int, default=1)
    parser.add_argument("--pairs_per_prompt", type=int)
    parser.add_argument("--format", choices=_FORMATS, default="columns")
    parser.add_argument("--unusable", choices=("refuse", "drop"), default="refuse")
    parser.add_argument("--seed_everything", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8770)
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--export", type=Path)
    parser.add_argument("--pairs", type=Path)
    given, unknown = parser.parse_known_args(args)
    if unknown:
        known = [name for name in vars(given) if name != "what"]
        near = nearest(unknown[0].lstrip("-").partition("=")[0], known)
        raise UserError(f"unrecognized arguments: {' '.join(unknown)}{near}")
    if not 0 <= given.port < 2**16:
        raise UserError(f"--port must be from 0 to {2**16 - 1}, but it is {given.port}")
    refuse_output("--export", given.export, [given.what])
    refuse_output("--pairs", given.pairs, [given.what, given.export])
    return given


def _store(given: argparse.Namespace) -> VoteStore:
    """The file of questions and votes, with those that the command brings."""
    path: Path = given.what
    is_rows = path.suffix.lower() in (".jsonl", ".json") and not path.is_dir()
    only_asks = given.summary or given.export or given.pairs
    if not is_rows:
        _refuse_options_of_rows(given)
        return VoteStore(_file_of(path), must_exist=True)
    own: Path = given.output or path.with_suffix(".sqlite")
    if only_asks:
        return VoteStore(own, must_exist=True)
    refuse_output("--output", own, [path])
    from nlhf_zoo.cli.ask.reading import read_asked

    asked = read_asked(
        path, given.format, given.unusable, given.pairs_per_prompt, given.seed_everything
    )
    for note in asked.notes:
        print(f"nlhf: {note}", file=sys.stderr)
    store = VoteStore(own)
    store.put(asked.pairs, given.votes)
    return store


def _refuse_options_of_rows(given: argparse.Namespace) -> None:
    """Refuse what only a file of rows can be asked for."""
    rows = {"votes": 1, "pairs_per_prompt": None, "format": "columns", "unusable": "refuse"}
    rows |= {"seed_everything": 0, "output": None}
    for name, default in rows.items():
        if getattr(given, name) != default:
            raise UserError(
                f"--{name} is for a .jsonl file, and {given.what} is none: leave it out"
            )


def _file_of(path: Path) -> Path:
    """The file of questions and votes of a run, or the file itself."""
    if not path.is_dir():
        return path
    found = [*_found(path)]
    if not found:
        raise UserError(
            f"{path} has no {NAME}: a run has one as soon as it asks people, by the oracle "
            "HumanOracle"
        )
    if len(found) > 1:
        raise UserError(f"{path} has several files of votes: give one, such as {found[-1]}")
    return found[0]


def _found(folder: Path) -> Iterator[Path]:
    """Files of votes in the folder of a run, and in the folders of its versions and checkpoints."""
    for pattern in ("", "checkpoints", "version_*", "version_*/checkpoints"):
        yield from sorted(folder.glob(f"{pattern}/{NAME}" if pattern else NAME))


def _write(store: VoteStore, given: argparse.Namespace) -> bool:
    """Write what is asked for instead of a page; whether anything is."""
    for name in ("export", "pairs"):
        refuse_output(f"--{name}", getattr(given, name), [store.path])
    if given.summary:
        print("\n".join(summary(store)))
    if given.export:
        print(f"{export(store, given.export)} votes are in {given.export}")
    if given.pairs:
        print(f"{export_pairs(store, given.pairs)} pairs are in {given.pairs}")
    return bool(given.summary or given.export or given.pairs)


def _serve(store: VoteStore, host: str, port: int) -> NoReturn:
    """Serve the page until a signal ends it."""
    ends, watch = threading.Event(), SignalWatch()
    before = watch.install(first=lambda _: ends.set(), again=end_at_once)
    try:
        server = PeopleServer(store, host, port)
        progress = store.progress()
        print(f"{store.path}: {progress.open} of {progress.questions} questions are open")
        print(f"Choose here: {server.address}", flush=True)
        if not is_loopback(host):
            print("Nothing is encrypted: it belongs on a private network", file=sys.stderr)
        while not ends.wait(3600):
            continue
        server.close()
        votes = sum(store.progress().votes.values())
        print(f"{votes} votes are in {store.path}; the same command goes on", flush=True)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert watch.received is not None
    raise StoppedBySignal(watch.received)
