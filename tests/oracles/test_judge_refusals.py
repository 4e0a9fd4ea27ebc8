"""Mistakes with a judge's options: one sentence, exit code 2, before anything is asked."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
import yaml
from judge_server import JudgeServer
from paths import ROOT
from slow import slow_unless
from tiny_models import save_tiny

from nlhf_zoo.cli.main import main
from nlhf_zoo.oracles import JudgeOracle

CONFIG = ROOT / "configs/lm/judge.yaml"
JUDGE = [
    *("fit", "--config", str(ROOT / "configs/tabular/online_dpo.yaml")),
    *("--model.oracle", "JudgeOracle", "--model.oracle.model", "small"),
    *("--model.oracle.base_url", "http://127.0.0.1:9/v1", "--model.oracle.api_key_env="),
]
SECRET = "sk-hunter2hunter2"

# ruff: noqa: E501  # a table of one row a line

# What is given in place of what is right, and what is said.
REFUSALS = {
    "no model": ({"model": ""}, "model needs a name"),
    "no address": ({"base_url": ""}, "base_url must be http:// or https://"),
    "no scheme": ({"base_url": "localhost:8000"}, "base_url must be http:// or https://"),
    "another scheme": ({"base_url": "ftp://localhost/v1"}, "http:// or https://.*'ftp://"),
    "no host": ({"base_url": "http:///v1"}, "with a host"),
    "blank in the address": ({"base_url": "http://local host/v1"}, "http:// or https://"),
    "port no number": ({"base_url": "http://localhost:abc/v1"}, "base_url is no address"),
    "port too large": ({"base_url": "http://localhost:99999/v1"}, "base_url is no address"),
    "password in the address": (
        {"base_url": f"http://me:{SECRET}@localhost/v1"},
        "base_url holds a user name or a password: leave them out",
    ),
    "key in the address": ({"base_url": f"http://localhost/v1?key={SECRET}"}, "goes on after its path"),
    "key for its name": ({"api_key_env": SECRET}, "api_key_env must be the name of an environment"),
    "no key": ({"api_key_env": "NOT_THERE"}, "not in the environment: set the variable NOT_THERE"),
    "empty key": ({"api_key_env": "EMPTY_KEY"}, "not in the environment: set the variable EMPTY_KEY"),
    "key with a line end": ({"api_key_env": "BROKEN_KEY"}, "in the environment variable BROKEN_KEY holds"),
    "template not there": ({"template": "no.txt"}, r"template no\.txt cannot be read: No such file"),
    "template a folder": ({"template": "folder"}, "template folder is not a file: check the path"),
    "template that never ends": ({"template": "/dev/zero"}, "template /dev/zero is not a file"),
    "template not UTF-8": ({"template": "latin.txt"}, r"latin\.txt is not text in UTF-8"),
    "template lacks a field": ({"template": "lacks.txt"}, r"lacks\.txt lacks the field \{second\}"),
    "template unknown field": ({"template": "third.txt"}, r"third\.txt has the unknown field '\{third\}'"),
    "template braces": ({"template": "braces.txt"}, r"braces\.txt has .*\{\{ and \}\} for braces"),
    "verdict": ({"verdict": "text"}, r"verdict"),
    "system with options": (
        {"verdict": "options", "system": "Judge."},
        "no system message with verdict options",
    ),
    "too few log-probabilities": ({"top_logprobs": "1"}, "top_logprobs must be at least 2, but it is 1"),
    "order": ({"order": "swapped"}, "order"),
    "temperature": ({"temperature": "-1"}, "temperature must be 0 or a number above, but it is -1"),
    "max_tokens": ({"max_tokens": "0"}, "max_tokens must be at least 1"),
    "a letter without its end": (
        {"max_tokens": "1", "verdict": "logprobs"},
        "max_tokens must be at least 2 with verdict logprobs",
    ),
    "concurrency": ({"concurrency": "0"}, "concurrency must be from 1 to 1000, but it is 0"),
    "pace": ({"requests_per_minute": "0"}, "requests_per_minute must be a number above 0"),
    "timeout": ({"timeout": "0"}, "timeout must be a number above 0, but it is 0"),
    "endless timeout": ({"timeout": ".inf"}, "timeout must be a number above 0, but it is inf"),
    "retries": ({"retries": "-1"}, "retries must be 0 or more, but they are -1"),
    "backoff": ({"backoff": "-1"}, "backoff must be a number above 0"),
    "patience": ({"patience": "5"}, "patience must be at least its timeout, 60 s, but it is 5 s"),
    "patience nan": ({"patience": ".nan"}, "patience must be at least its timeout"),
    "own field": ({"extra_body": "{stream: true}"}, "extra_body holds stream, which the oracle sets"),
    "misspelt option": ({"concurency": "3"}, "concurency"),
}  # fmt: skip


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"nlhf: error: [^\n]+\n", err), err
    assert len(err) < 500
    return err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMPTY_KEY", "")
    monkeypatch.setenv("BROKEN_KEY", f"{SECRET}\n")
    (tmp_path / "folder").mkdir()
    texts = {"lacks": "{prompt} {first}", "third": "{prompt} {first} {second} {third}"}
    texts["braces"] = '{prompt} {first} {second} {"better": "A"}'
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "latin.txt").write_bytes("{prompt} {first} {second} é".encode("latin1"))
    return tmp_path


@pytest.mark.parametrize("kind", REFUSALS)
def test_the_oracle_refuses(kind, folder):
    options, sentence = REFUSALS[kind]
    given = {name: yaml.safe_load(value) if value else value for name, value in options.items()}
    right = {"model": "small", "base_url": "http://127.0.0.1:9/v1", "api_key_env": None}
    with pytest.raises((ValueError, TypeError), match=sentence) as refusal:
        JudgeOracle(**right | given)
    assert SECRET not in str(refusal.value)


# One of each way on which a refusal comes to the command line, which is the same for the others:
# an address, a secret, the environment, a file, a number, and what the parser refuses.
WAYS = (
    "no address", "password in the address", "no key", "template not UTF-8", "temperature",
    "own field", "verdict", "misspelt option",
)  # fmt: skip


@slow_unless("kind", lambda kind: kind in WAYS, REFUSALS)
def test_fit_refuses(kind, folder, capsys):
    options, sentence = REFUSALS[kind]
    before = sorted(folder.rglob("*"))
    given = [f"--model.oracle.{name}={value}" for name, value in options.items()]
    err = refused([*JUDGE, *given], capsys)
    assert re.search(sentence, err), err
    assert SECRET not in err
    assert sorted(folder.rglob("*")) == before


def test_a_missing_client_is_named(folder, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: (name != "openai" and find(name, *more)) or None,
    )
    err = refused(JUDGE, capsys)
    assert "JudgeOracle needs the openai client: pip install 'nlhf_zoo[judge]'" in err


def test_the_configuration_plays_a_game(folder, monkeypatch, capsys):
    """`configs/lm/judge.yaml` as it is, but for the model, its size and the place of the judge."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    save_tiny(folder / "model", "llama", chat=True)
    (folder / "prompts.jsonl").write_text('{"prompt": "to be or not?"}\n{"prompt": "why"}\n')
    with JudgeServer() as server:
        main([
            *("fit", "--config", str(CONFIG), "--model.policy.model", "model"),
            *("--model.policy.max_new_tokens", "4", "--data.path", "prompts.jsonl"),
            *("--data.batch_size", "2", "--data.num_validation", "null"),
            *("--trainer.callbacks.rounds", "1"),
            *("--model.oracle.base_url", server.url, "--model.oracle.api_key_env", "JUDGE_KEY"),
            *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
        ])  # fmt: skip
        asked = server.entries()
    said = capsys.readouterr().err
    where = server.url.removesuffix("/v1")
    assert said.count(f"The judge at {where} is sent the key in JUDGE_KEY\n") == 1
    assert SECRET not in said
    pairs = {frozenset([entry["first"], entry["second"]]) for entry in asked}
    assert len(asked) >= 2 * len(pairs) > 0
    for path in (folder / "runs").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    (checkpoint,) = (folder / "runs").rglob("last.ckpt")
    saved = repr(torch.load(checkpoint, weights_only=True))
    assert f"'requests': {len(asked)}" in saved
    assert yaml.safe_load(CONFIG.read_text())["seed_everything"] == 0
