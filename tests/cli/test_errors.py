"""How commands end that fail: a sentence and exit code 2, or the file of a traceback and 70."""

# ruff: noqa: E501  # a table of one row a line

import errno
import os
import re
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import InterpolationKeyError
from torch.multiprocessing.spawn import ProcessRaisedException

from nlhf_zoo.cli.errors import sentence_of
from nlhf_zoo.cli.main import main
from nlhf_zoo.errors import DivergenceError, UserError

ELSEWHERE = """
-- Process 1 terminated with the following error:
Traceback (most recent call last):
  File "game.py", line 3, in step
nlhf_zoo.errors.DivergenceError: training diverged
"""
OF_THE_USER = {
    "no file": (FileNotFoundError(errno.ENOENT, "No such file", "a.yaml"), "a.yaml: No such file"),
    "full disk": (OSError(errno.ENOSPC, "No space left on device"), "input or output: No space"),
    "long name": (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), "name .* too long"),
    "NUL": (ValueError("embedded null byte"), "holds a NUL character"),
    "half a character": (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), "half"),
    "memory": (MemoryError(), "not enough memory: make the game or the batch smaller"),
    "memory of torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough mem"),
    "memory of a GPU": (torch.OutOfMemoryError("CUDA out of memory."), "not enough memory"),
    "another model": (RuntimeError("Error(s) in loading state_dict for X"), "does not fit the model"),
    "Lightning": (MisconfigurationException("No such accelerator"), "No such accelerator"),
    "interpolation": (InterpolationKeyError("key 'x' not found"), "interpolation .* fails: key 'x'"),
    "another process": (ProcessRaisedException(ELSEWHERE, 1, 7), "^training diverged$"),
    "ours": (DivergenceError("training diverged"), "^training diverged$"),
}  # fmt: skip
UNEXPECTED = [
    ValueError("no such thing"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    KeyError("x"),
    ZeroDivisionError(),
    ProcessRaisedException("Traceback\nKeyError: 'x'\n", 1, 7),
]


@pytest.mark.parametrize("kind", OF_THE_USER)
def test_what_the_user_can_mend_is_a_sentence(kind, monkeypatch, capsys):
    error, sentence = OF_THE_USER[kind]
    monkeypatch.setattr("nlhf_zoo.cli.solve.main", raises(error))
    with pytest.raises(SystemExit) as end:
        main(["solve"])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert re.fullmatch(r"nlhf: error: [^\n]+\n", said)
    assert re.search(sentence, said.removeprefix("nlhf: error: ").strip())


@pytest.mark.parametrize("error", UNEXPECTED, ids=repr)
def test_what_nobody_expected_says_so_and_names_the_file_of_its_traceback(
    error, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("nlhf_zoo.cli.solve.main", raises(error))
    with pytest.raises(SystemExit) as end:
        main(["solve"])
    said = capsys.readouterr().err
    assert end.value.code == 70
    found = re.fullmatch(
        r"nlhf: error: unexpected [^\n]+; the traceback is in (\S+): [^\n]+\n", said
    )
    assert found, said
    text = Path(found[1]).read_text()
    assert text.startswith("Traceback")
    assert type(error).__name__ in text
    assert os.stat(found[1]).st_mode & 0o077 == 0  # what a traceback quotes is nobody else's


def test_on_a_full_disk_the_traceback_is_printed(monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    monkeypatch.setattr("nlhf_zoo.cli.solve.main", raises(KeyError("x")))
    with pytest.raises(SystemExit) as end:
        main(["solve"])
    said = capsys.readouterr().err
    assert end.value.code == 70
    assert "Traceback (most recent call last)" in said
    assert said.splitlines()[-1].startswith(
        "nlhf: error: unexpected KeyError: 'x'; the traceback is"
    )


def test_an_empty_message_still_says_something():
    assert sentence_of(UserError()) == "UserError"
    assert sentence_of(KeyboardInterrupt()) is None


def raises(error):
    def command(*_):
        raise error

    return command
