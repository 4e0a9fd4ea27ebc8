"""`nlhf oracle` of a judge: one question as a trial, and a judge that is never understood."""

import json
import re
from pathlib import Path

import pytest
from judge_server import JudgeServer, rule
from judge_server_oracles import oracle
from paths import ROOT
from tiny_models import save_tiny

from nlhf_zoo.cli.main import main
from nlhf_zoo.health.oracles.judges import models_of
from nlhf_zoo.oracles import BudgetedOracle

KEY = "sk-test-7fQ2/xY+93hFz0PqLm"


def judge(server: JudgeServer, *options: str) -> list[str]:
    given = {"model": "small", "base_url": server.url, "api_key_env": "", "retries": "0"}
    return [
        *("oracle", "--oracle=JudgeOracle"),
        *(f"--oracle.{name}={value}" for name, value in given.items()),
        *options,
    ]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    sentence = err.splitlines()[-1]
    assert sentence.startswith("nlhf: error: "), err
    return out, sentence


def test_a_probe_is_one_request_and_says_how_it_was_read(capsys):
    with JudgeServer() as server:
        main(judge(server, "--probe"))
        assert len(server.entries()) == 1
    out = capsys.readouterr().out
    probability = rule("Four.", "Seven.")
    assert "options     model small, temperature 0.0, max_tokens 256\n" in out
    assert "server      lists small\n" in out
    assert "ended with stop; 100 tokens read, 7 written\n" in out
    assert f'text        {{"probability": {probability}}}\n' in out
    assert out.endswith(f"read as     P(A > B) = {probability:.6g}\n")


def test_a_probe_shows_the_tokens_that_a_verdict_is_read_from(capsys, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Which?", "responses": ["one", "two", "three"]}) + "\n")
    with JudgeServer(manner="thinks") as server:
        main(judge(server, "--probe", "--oracle.verdict=logprobs", f"--responses={rows}"))
        assert [(e["first"], e["second"]) for e in server.entries()] == [("one", "two")]
    out = capsys.readouterr().out
    assert "token       '<|im_end|>': 'A' " in out
    assert "token       '<think>'" not in out  # the last ones
    assert f"P(A > B) = {rule('one', 'two'):.6g}\n" in out


@pytest.mark.parametrize(
    ("always", "came_back", "sentence"),
    [
        ("refusal", "text        I'm sorry", "no verdict: it is not one JSON object"),
        ("cut", "ended with length", "it was cut at the limit of tokens: raise max_tokens"),
        ("status_500", "status 500", "no completion with the model small: status 500"),
        ("status_401", "status 401", "no completion with the model small: status 401"),
        ("no_json", "no completion, but <html>", "no completion with the model small"),
    ],
)
def test_a_probe_that_gives_no_verdict_ends_with_2(always, came_back, sentence, capsys):
    with JudgeServer(always=always) as server:
        out, err = refused(judge(server, "--probe"), capsys)
        assert len(server.entries()) == 1
    assert came_back in out
    assert sentence in err


def test_a_probe_shows_no_key(capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with JudgeServer(always="status_401") as server:
        texts = refused(judge(server, "--probe", "--oracle.api_key_env=JUDGE_KEY"), capsys)
        assert server.entries()[0]["authorization"] == f"Bearer {KEY}"
    assert not any(KEY[i : i + 6] in text for text in texts for i in range(len(KEY) - 5))


def test_a_probe_needs_a_judge_and_writes_no_file(capsys):
    rule_ = ["--oracle=RuleOracle", "--oracle.function=nlhf_zoo.oracles.rules.shorter_wins"]
    _, err = refused(["oracle", *rule_, "--probe"], capsys)
    assert "--probe asks a judge, and RuleOracle has none" in err
    _, err = refused(["oracle", *rule_, "--probe", "--output=x.json"], capsys)
    assert "--probe asks one question" in err


def test_a_probe_of_a_configuration_builds_no_responses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    save_tiny(tmp_path / "model", "llama", chat=True)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "to be or not?"}\n')
    with JudgeServer() as server:
        main([
            *("oracle", "--probe", "--config", str(ROOT / "configs/lm/judge.yaml")),
            *("--model.policy.model", "model", "--data.path", "prompts.jsonl"),
            *("--data.num_validation", "null"),
            *("--model.oracle.base_url", server.url, "--model.oracle.api_key_env", "null"),
            *("--model.policy.max_new_tokens", "4", "--data.batch_size", "1"),
            *("--trainer.accelerator", "cpu"),
        ])  # fmt: skip
        assert len(server.entries()) == 1
    assert "read as     P(A > B) = " in capsys.readouterr().out


def test_a_judge_that_is_never_understood_ends_with_2_and_its_last_words(capsys, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Which?", "responses": ["one", "two", "three"]}) + "\n")
    for always, words in (
        ("refusal", "no verdict, for it is not one JSON object, but I'm sorry, but I can't"),
        ("status_500", "status 500, status 500 for the key none"),  # as of a name it does not know
        ("status_400", "status 400, status 400 for the key none"),
    ):
        with JudgeServer(always=always) as server:
            out, err = refused(judge(server, f"--responses={rows}"), capsys)
        if always != "status_400":  # after eight refusals it is not asked on
            assert re.search(rf"invalid answers +100\.0%  3 of 3 .*; its last words: {words}", out)
            assert f"JudgeOracle has no answer to any of 3 pairs; its last words: {words}" in err
        else:
            assert f"refuses every question ({words}" in err


def test_what_a_server_lists_is_a_note_of_the_doctors():
    with JudgeServer() as server:
        known, other = oracle(server), oracle(server, model="large")
        (note,) = models_of(BudgetedOracle(known, max_queries=1))  # it costs nothing
        assert note.figure == "lists small"
        (note,) = models_of(other)
        assert note.figure == "does not list large, but small"
        assert server.entries() == []
        assert known.ledger["requests"] == 0
    (note,) = models_of(known)
    assert "GET /models: " in note.figure
