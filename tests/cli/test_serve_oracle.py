"""``nlhf serve-oracle`` and runs that ask it, each in a process of its own."""

import inspect
import json
import os
import re
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from forked import ended, nlhf, started
from judge_server_oracles import questions
from paths import CONFIGS
from runs import LAST, RUN, SAMPLED, configuration, part

from nlhf_zoo.cli import serve_oracle
from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles import CachedOracle, RuleOracle, ServedOracle
from nlhf_zoo.oracles.journal import journalled
from nlhf_zoo.oracles.rules import Mentions, shorter_wins
from nlhf_zoo.oracles.served.counts import counted_in
from nlhf_zoo.oracles.served.description import described
from nlhf_zoo.signals import ENDING, StoppedBySignal

TABLE = part("UniformRandom", num_games=2, num_actions=4)


def counted(most):
    """A table that a budget counts."""
    return part("BudgetedOracle", oracle=TABLE, max_queries=most)


@contextmanager
def served(folder, *args):
    """A server, with its address and how it ends; in the end it gets a signal."""
    process, said, end = started("serve-oracle", *args, "--port", "0", folder=folder), "", []
    try:
        while not (found := re.search(r"Address: (\S+)\n", said)):
            assert process.is_alive(), (folder / ".stderr").read_text()
            time.sleep(0.01)
            said = (folder / ".stdout").read_text() if (folder / ".stdout").exists() else ""
        yield found[1], end
    finally:
        os.kill(process.pid, signal.SIGTERM)
        end.append(ended(process, folder))


def impatient():
    """The first attempt that fails is the last."""
    from nlhf_zoo.oracles.served import client

    client._FIRST_PAUSE = 1e4


def fit(folder, oracle, *args, before=None):
    folder.mkdir(exist_ok=True)
    game = configuration(algorithm=part("NashMP"), **{**SAMPLED, "oracle": oracle})
    (folder / "game.yaml").write_text(yaml.safe_dump(game))
    return nlhf("fit", "--config", "game.yaml", *args, folder=folder, before=before)


def left(folder):
    return torch.load(folder / RUN / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.slow  # eight starts of a command
def test_a_run_goes_on_where_its_server_ends(tmp_path):
    """And ends as one that asks the oracle itself; the server counts over its restarts."""
    local, mine, there = tmp_path / "local", tmp_path / "mine", tmp_path / "there"
    there.mkdir()
    run = fit(local, counted(1000))
    assert run.code == 0, run.err
    small = {"oracle": counted(30), "seed_everything": 3, "folder": "counts"}
    (there / "own.yaml").write_text(yaml.safe_dump(small))
    with served(there, "own.yaml") as (address, ends):
        run = fit(mine, part("ServedTable", url=address))
    assert run.code == 2
    assert "has stopped: the oracle's budget is spent" in run.sentence
    kept = left(mine)["online_game"]["ledgers"]["ledger"]["queries"]
    assert 0 < kept <= 30
    assert (ends[0].code, ends[0].sentence) == (143, "nlhf: stopped by SIGTERM")
    lines = ends[0].out.splitlines()
    assert lines[0] == "BudgetedOracle is served to this machine alone"
    assert lines[-1].startswith(f"The oracle was asked: {kept} queries")
    assert journalled(there / "counts")["ledger"]["queries"] == kept

    run = fit(mine, part("ServedTable", url=address), *LAST, before=impatient)
    assert run.code == 2
    assert "has given no answer for 10 s (ConnectionRefusedError" in run.sentence

    large = ("--oracle.max_queries", "1000")
    with served(there, "own.yaml", *large) as (address, ends):
        run = fit(mine, part("ServedTable", url=address), *LAST)
        assert run.code == 0, run.err
        before = journalled(there / "counts")["ledger"]["queries"]
        two = ("--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--data.batch_size", "1")
        run = fit(tmp_path / "two", part("ServedTable", url=address), *two)
        assert run.code == 0, run.err
    # Of two processes each has settled its own: together what the server was asked.
    of_two = journalled(tmp_path / "two" / RUN / "checkpoints")["ledger"]["queries"]
    assert of_two == journalled(there / "counts")["ledger"]["queries"] - before > 0
    for name, weight in left(local)["state_dict"].items():
        assert torch.equal(weight, left(mine)["state_dict"][name])
    counts = [left(one)["online_game"]["ledgers"]["ledger"]["queries"] for one in (local, mine)]
    assert counts[0] == counts[1]
    assert journalled(local / RUN / "checkpoints")["ledger"]["queries"] == before


def test_a_signal_ends_a_server_whose_counts_are_written(tmp_path, capfd):
    """In this process, which asks in a thread."""
    found = {}

    def ask():
        said = ""
        while not (address := re.search(r"Address: (\S+)\n", said)):
            time.sleep(0.002)
            said += capfd.readouterr().out
        found["lines"] = said.splitlines()
        found.update(ServedOracle(address[1]).answers(questions(3)))
        os.kill(os.getpid(), signal.SIGTERM)

    handlers = [signal.getsignal(one) for one in ENDING]
    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(StoppedBySignal, match="stopped by SIGTERM") as end:
        serve_oracle.serve(RuleOracle(shorter_wins), port=0, folder=str(tmp_path / "counts"))
    asking.join()
    assert end.value.code == 143
    assert [signal.getsignal(one) for one in ENDING] == handlers
    path = tmp_path / "counts/asked-0.jsonl"
    lines = ["RuleOracle is served to this machine alone", f"Counts: {path}"]
    assert found.pop("lines")[:2] == lines
    assert found == dict(RuleOracle(shorter_wins).answers(questions(3)))
    said = capfd.readouterr()
    assert said.out.startswith("The oracle was asked: 3 queries")
    assert said.err == "Ending: questions under way are answered, no other is asked\n"
    assert journalled(path.parent)["ledger"]["queries"] == 3


CONFIG = {"oracle": TABLE}
REFUSED = {
    "no file": (["nothing.yaml"], "File does not exist"),
    "no oracle": ([], "oracle"),
    "another option": (["own.yaml", "--hosst", "x"], "unrecognized arguments: --hosst"),
    "strangers": (["own.yaml", "--host", "0.0.0.0"], "there is no token: give --token_env"),
    "no token there": (["own.yaml", "--token_env", "NO_TOKEN"], "not in the environment variable"),
    "a port": (["own.yaml", "--port", "70000"], "--port must be from 0 to 65535"),
    "another machine": (
        ["own.yaml", "--host", "192.0.2.1", "--token_file", "token"], "nothing can be served at",
    ),
    "a device": (["own.yaml", "--device", "gpu7"], "--device gpu7 cannot be used"),
    "a model": (["model.yaml"], "has no model.oracle that could be served"),
    "an interpolation": (["interpolated.yaml"], "by an interpolation"),
    "labels": (["labels.yaml"], "put BernoulliLabels around ServedOracle"),
    "a folder": (["counted.yaml", "--folder", "own.yaml"], "own.yaml cannot be written to"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_in_a_sentence(name, tmp_path, monkeypatch):
    args, message = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    files = {
        "own": CONFIG, "model": {"model": {"class_path": "OnlineGame"}},
        "labels": {"oracle": part("BernoulliLabels", oracle=TABLE)},
        "counted": {"oracle": counted(9)},
        "interpolated": {"oracle": counted("${trainer.max_steps}")},
    }  # fmt: skip
    for file, content in files.items():
        Path(f"{file}.yaml").write_text(yaml.safe_dump(content))
    Path("token").write_text("x" * 20)
    with pytest.raises(UserError, match=message) as caught:
        serve_oracle.main(args or ["--host", "127.0.0.1"])
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["token", *(f"{file}.yaml" for file in files)]
    )


def test_two_servers_do_not_count_in_one_folder(tmp_path):
    with counted_in(tmp_path, RuleOracle(shorter_wins)) as path:
        assert path == tmp_path / "asked-0.jsonl"
        with pytest.raises(UserError, match="counts of a server that is running"):
            counted_in(tmp_path, RuleOracle(shorter_wins)).__enter__()
    with pytest.raises(UserError, match="counts what another oracle was asked"):
        counted_in(tmp_path, RuleOracle(Mentions("fig"))).__enter__()
    (tmp_path / "oracle.json").write_text("no JSON")
    with pytest.raises(UserError, match="was not written by `nlhf serve-oracle`"):
        counted_in(tmp_path, RuleOracle(shorter_wins)).__enter__()
    assert json.loads((tmp_path / "asked-0.jsonl").read_text())["queries"] == 0


def test_help_names_the_options(capsys):
    serve_oracle.main(["--help"])
    said = capsys.readouterr().out
    options = set(re.findall(r"^  --(\w+)", said, re.MULTILINE))
    assert options == {*inspect.signature(serve_oracle.serve).parameters}


def test_the_example_is_complete(tmp_path, monkeypatch):
    path = CONFIGS / "judge/served.yaml"
    monkeypatch.chdir(tmp_path)
    address = "http://localhost:9/v1"
    options = serve_oracle.read([str(path), "--oracle.oracle.base_url", address])
    assert isinstance(options["oracle"], CachedOracle)
    assert options["oracle"].oracle.client.endpoint.base_url == address
    written = yaml.safe_load(path.read_text())
    assert written.keys() == options.keys()
    defaults = inspect.signature(serve_oracle.serve).parameters.values()
    assert {one.name: one.default for one in defaults if one.name != "oracle"} == {
        name: value for name, value in options.items() if name != "oracle"
    }
    described(options["oracle"])
    assert [*tmp_path.iterdir()] == []
