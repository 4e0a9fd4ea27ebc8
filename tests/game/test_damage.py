"""What disks do to a run: torn files, changed bits, no space. Nothing is lost, or taken for whole.

A file that may not grow stands for a full disk, where there is none at hand.
"""

import builtins
import errno
import functools
import io
import os
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
import yaml
from slow import slow_unless

from nlhf_zoo.cli.resuming import refuse_other_config, refuse_other_file
from nlhf_zoo.errors import UserError

CHECKPOINTS = runs.RUN / "checkpoints"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has spent its budget; to be copied, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    runs.whole_run(folder, runs.CASES["sampled-nash_mp"])
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def damages(content: bytes, number: int) -> Iterator[tuple[str, bytes]]:
    """A file that was cut, that has 4 KiB of zeros, that has one other bit: each so many times."""
    draw = random.Random(0)
    for _ in range(number):
        length = draw.randrange(len(content))
        yield f"cut at {length}", content[:length]
        at = draw.randrange(len(content) - 100)
        zeros = bytes(min(4096, len(content) - at))
        yield f"zeros at {at}", content[:at] + zeros + content[at + len(zeros) :]
        at, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        yield f"bit {bit} at {at}", content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
    key = content.index(b"logits")
    yield "a bit of a key", content[:key] + b"m" + content[key + 1 :]


def refused_or_equal(run: Path, number: int) -> list[str]:
    """Damage the last checkpoint; which ways are refused. The rest must change nothing of it."""
    last, refused = run / CHECKPOINTS / "last.ckpt", []
    content, whole = last.read_bytes(), torch.load(last, weights_only=True)
    for name, damaged in damages(content, number):
        last.write_bytes(damaged)
        if sentence := said_of(last):
            assert f"go on with --ckpt_path {last.with_name('previous.ckpt')}" in sentence, name
            refused.append(name)
        else:
            found = torch.load(last, weights_only=True)
            assert runs.differences(found, whole) == [], name
    return refused


def said_of(checkpoint: Path) -> str:
    """Why a checkpoint is refused; nothing where it is not."""
    try:
        refuse_other_file(checkpoint)
    except UserError as error:
        return str(error)
    return ""


def test_a_torn_checkpoint_is_refused_or_the_same(run: Path):
    """Thirty-one of them; torch alone accepted bits that had changed, or ended in a traceback."""
    refused = refused_or_equal(run, 10)
    assert len(refused) > 20  # the rest are bytes that only fill
    assert "a bit of a key" in refused


@pytest.mark.nightly
def test_many_torn_checkpoints(run: Path):
    assert len(refused_or_equal(run, 1000)) > 2000


def test_the_one_before_is_whole_and_goes_on(finished: Path, run: Path):
    last = run / CHECKPOINTS / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[content.index(b"logits")] ^= 1
    last.write_bytes(content)
    done = runs.fit(run, *runs.LAST)
    assert done.code == 2
    assert done.err.count("\n") == 1
    previous = str(CHECKPOINTS / "previous.ckpt")
    assert f"the one before it is whole, go on with --ckpt_path {previous}" in done.err
    before = (run / previous).read_bytes()
    done = runs.fit(run, "--ckpt_path", previous)
    assert done.code == 0, done.err
    runs.assert_same_game(finished, run, logs=False)
    # What was damaged has not taken the place of what it was resumed from.
    assert (run / previous).read_bytes() == before


CONFIGURATIONS = {
    "empty": lambda text: b"",
    "half": lambda text: text[: len(text) // 2],
    "a word less": lambda text: text[:-12],
    "zeros": lambda text: bytes(len(text)),
    "a list": lambda text: b"- model\n- data\n",
    "a number": lambda text: b"7\n",
    "binary": lambda text: bytes(range(256)),
    "no model": lambda text: text.replace(b"\nmodel:", b"\nmodels:"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_torn_configuration_is_refused(name: str, run: Path):
    """Each of them ended in a traceback."""
    path = run / runs.RUN / "config.yaml"
    whole = yaml.safe_load(path.read_text())
    refuse_other_config(path, whole)
    path.write_bytes(CONFIGURATIONS[name](path.read_bytes()))
    with pytest.raises(UserError, match=r"config.yaml .*put the file back as it was, or move it"):
        refuse_other_config(path, whole)


def limit(size: int) -> None:
    """No file may grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill(file: str, number: int) -> None:
    """There is no space left where a file of a name is opened to be written, from that time on."""
    original, calls = open, [0]

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        calls[0] += file in str(path) and bool({*"wa+"} & {*mode})
        if file in str(path) and calls[0] >= number:
            raise no_space()
        return original(path, mode, *args, **kwargs)

    builtins.open = io.open = opened  # type: ignore[assignment]


def no_move(number: int) -> None:
    """There is no space left for a checkpoint, which is written elsewhere and moved."""
    import fsspec.implementations.local

    moves = [0]

    def move(source: str, target: str) -> None:
        moves[0] += 1
        if moves[0] == number:
            Path(target).write_bytes(Path(source).read_bytes()[:1000])
            raise no_space()
        shutil.move(source, target)

    fsspec.implementations.local.shutil = type("Shutil", (), {"move": staticmethod(move)})


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FAULTS = {
    "1 kB": functools.partial(limit, 1000),
    "3 kB": functools.partial(limit, 3000),
    "12 kB": functools.partial(limit, 12000),
    "configuration": functools.partial(fill, "config.yaml", 1),
    "events": functools.partial(fill, "events", 1),
    "history": functools.partial(fill, "history.json", 1),
    "first checkpoint": functools.partial(no_move, 1),
    "third checkpoint": functools.partial(no_move, 3),
}


QUICK = ("3 kB", "third checkpoint")  # the others are slow


@slow_unless("fault", lambda fault: fault in QUICK, FAULTS)
def test_a_full_disk_loses_nothing(fault: str, finished: Path, tmp_path: Path):
    """A traceback of TensorBoard's thread stood above the sentence."""
    config = yaml.safe_load((finished / "game.yaml").read_text())
    config["trainer"]["callbacks"][1] = runs.part("Budget", rounds=4)
    runs.write(tmp_path, config)
    assert runs.fit(tmp_path).code == 0
    shutil.copy(finished / "game.yaml", tmp_path)
    done = runs.fit(tmp_path, *runs.LAST, before=FAULTS[fault])
    assert done.code == 2, done.err
    assert done.err.count("\n") == 1, done.err
    assert "runs" in done.sentence  # the file, or its folder
    assert runs.fit(tmp_path, *runs.LAST).code == 0
    runs.assert_same_game(tmp_path, finished, logs=False)
    assert not list(tmp_path.rglob("*.part"))
