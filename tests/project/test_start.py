"""The four pages of docs/start: every command runs, in order, in an empty folder."""

import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

import pytest
from judge_server import JudgeServer
from paths import ROOT
from slow import slow_unless

from nlhf_zoo.cli.early import refuse_early
from nlhf_zoo.cli.main import main
from project.test_docs import blocks, text_of

PAGES = ("votes", "rule", "judge", "pairs")
INSTALL = ["make venv", "source .venv/bin/activate"]
TOY = "python docs/start/toy_model.py "
JUDGE = "python tests/judge_server.py "
# In the end of each page, what is there.
LEFT = {
    "votes": "runs/votes/version_0/checkpoints/last.ckpt",
    "rule": "my_adapter/adapter_model.safetensors",
    "judge": "judge_answers.sqlite",
    "pairs": "runs/pairs/version_0/checkpoints/last.ckpt",
}


@dataclass(frozen=True)
class Step:
    """A line of a page, and of `cat` the text that it writes."""

    command: str
    text: str = ""


def steps(page: str) -> Iterator[Step]:
    for block in blocks(f"docs/start/{page}.md", "bash"):
        lines = iter(re.sub(r"\\\n +", "", block).splitlines())
        for line in lines:
            if line.endswith("<<'EOF'"):
                text = [*takewhile(lambda one: one != "EOF", lines)]
                yield Step(line, "".join(f"{one}\n" for one in text))
            elif line:
                yield Step(line)


def small(args: list[str]) -> list[str]:
    """A command on a small budget."""
    if args[0] != "fit":
        return ["40" if before == "--bootstrap" else arg for before, arg in pairwise(["", *args])]
    if re.search(r"preference_model(/general)?\.yaml", " ".join(args)):
        limit = ["--data.limit", "640"] if "configs/preference_model/general.yaml" in args else []
        return [*args, *limit, "--trainer.max_epochs", "1"]
    budget = ["--trainer.callbacks+", "Budget", "--trainer.callbacks.rounds", "1"]
    return [*args, *budget, "--trainer.enable_progress_bar", "false"]


def nlhf(command: str) -> str:
    """What a command prints; it ends well."""
    name, *args = shlex.split(command)
    assert name == "nlhf"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(small(args))
    return out.getvalue()


def play(step: Step) -> str:
    if found := re.fullmatch(r"cat > (\S+) <<'EOF'", step.command):
        Path(found[1]).write_text(step.text)
        return ""
    if step.command.startswith(TOY):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["toy_model.py", step.command.removeprefix(TOY)])
            runpy.run_path(str(ROOT / "docs/start/toy_model.py"), run_name="__main__")
        return ""
    if step.command.startswith(JUDGE):
        options, command = step.command.removeprefix(JUDGE).split("-- ", 1)
        taste = options.split()[1] if options else "any"
        with JudgeServer(taste=taste) as server:
            return nlhf(command.replace("{url}", server.url))
    return nlhf(step.command)


@pytest.mark.parametrize("page", PAGES)
def test_every_option_is_there(page, tmp_path, monkeypatch):
    """All files are written, and of all commands the options are looked at, as before torch."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my_model").mkdir()
    (tmp_path / "my_model/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for step in steps(page):
        if step.text or step.command.startswith("nlhf init "):
            play(step)
        elif "nlhf " in step.command:
            command, *args = shlex.split(step.command.split("nlhf ", 1)[1])
            refuse_early(args, command)


@slow_unless("page", lambda page: page == "votes", PAGES)
def test_a_newcomer_gets_to_the_end(page, tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    todo = [*steps(page)]
    assert [step.command for step in todo[:2]] == INSTALL
    said = {step.command: play(step) for step in todo[2:]}
    assert (tmp_path / LEFT[page]).is_file()
    assert all(any(f"nlhf {kind} " in command for command in said) for kind in ("init", "fit"))
    (lottery, *_) = (out for command, out in said.items() if "nlhf solve" in command)
    if page in ("votes", "judge"):
        assert "no Condorcet winner; Smith set: " in lottery
    else:
        assert "The lottery loses to none of these answers." in lottery
    if page == "votes":
        (shown,) = blocks("docs/start/votes.md", "text")
        mask = re.compile(r"exploitability \S+")
        assert mask.sub("exploitability", shown) == mask.sub("exploitability", lottery)


def test_the_readme_and_the_first_page_say_whose_each_is():
    for where, folder in (("README.md", "docs/start"), ("docs/index.md", "start")):
        beginning = text_of(where).split("\n## ")[0]
        for page in PAGES:
            assert f"({folder}/{page}.md)" in beginning, f"{where}: {page}"
