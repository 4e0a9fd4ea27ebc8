"""What nobody may see of a judge's key, however a server repeats it."""

import base64
import copy
import hashlib
import json
import logging
import math
import pickle
import re
from urllib.parse import quote

import pytest
from judge_server import JudgeServer
from judge_server_oracles import questions

from nlhf_zoo.errors import UserError
from nlhf_zoo.oracles.judge.endpoint import presentable
from nlhf_zoo.oracles.judge.oracle import JudgeOracle

KEY = "sk-test-7fQ2/xY+93hFz0PqLm"


def hidden_in(text: str) -> None:
    assert KEY not in text
    assert not any(KEY[i : i + 8] in text for i in range(len(KEY) - 7)), text


@pytest.mark.parametrize("status", [401, 500])
def test_a_key_that_a_server_repeats_is_not_shown(status, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with JudgeServer(always=f"status_{status}") as server:
        judge = JudgeOracle("m", server.url, "JUDGE_KEY", retries=1, backoff=0.01)
        said = ""
        try:
            list(judge.answers(questions(1)))
        except UserError as error:
            said = f"{error} {error!r} {error.__cause__!r} {error.__context__!r}"
        assert ("check the key in JUDGE_KEY" in said) == (status == 401)
        assert server.entries()[0]["authorization"] == f"Bearer {KEY}"
    assert "status" in judge.last_error
    assert "[hidden]" in judge.last_error
    for text in (
        said, judge.last_error, repr(judge), repr(vars(judge)), judge.fingerprint, caplog.text,
        repr(judge.client), json.dumps(judge.ledger.here), repr(judge.state_dict()),
        pickle.dumps(judge).decode("latin1"), pickle.dumps(copy.deepcopy(judge)).decode("latin1"),
    ):  # fmt: skip
        hidden_in(text)


def test_a_key_in_a_reply_that_is_no_verdict_is_not_shown(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sorry")  # short keys are hidden whole
    with JudgeServer(always="refusal") as server:
        judge = JudgeOracle("m", server.url, "JUDGE_KEY", order="none")
        assert all(math.isnan(answer) for _, answer in judge.answers(questions(1)))
    assert judge.last_error == (
        "no verdict, for it is not one JSON object, but I'm [hidden], but I can't compare these."
    )


ECHOES = {
    "spaced": " ".join, "dashed": "-".join, "dotted": ". ".join, "one a line": "\n".join,
    "reason": lambda key: f"{key[:12]}...",
    "in capitals": str.upper,
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 of the header": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "base64 of a pair": lambda key: base64.b64encode(f"u:{key}".encode()).decode(),
    "base64, spaced": lambda key: " ".join(base64.b64encode(key.encode()).decode()),
    "base64, safe in an address": lambda key: base64.urlsafe_b64encode(key.encode()).decode(),
    "hexadecimal": lambda key: key.encode().hex(":"),
    "for an address": lambda key: quote(key, safe=""),
    "for an address, with its path": quote,
    "escaped": lambda key: "".join(f"\\u{ord(one):04x}" for one in key),
    "escaped, but letters": lambda key: "".join(
        one if one.isalnum() else f"\\u{ord(one):04X}" for one in key
    ),
    "escaped twice": lambda key: "".join(f"\\\\u{ord(one):04x}" for one in key),
    "for an address, all": lambda key: "".join(f"%{ord(one):02X}" for one in key),
    "for HTML": lambda key: "".join(f"&#{ord(one)};" for one in key),
    "base32": lambda key: base64.b32encode(key.encode()).decode(),
    "a digest": lambda key: hashlib.sha256(key.encode()).hexdigest(),
}  # fmt: skip


@pytest.mark.parametrize("echo", ECHOES)
def test_no_echo_of_a_key_is_shown(echo):
    said = presentable(f"The key {ECHOES[echo](KEY)} is wrong for the model.", KEY)
    left = said.replace("[hidden]", "")
    assert re.fullmatch(
        r"The key [^A-Za-z]{0,9}\w?[^A-Za-z]{0,9} is wrong for the model\.", left
    ), said


def test_no_part_of_a_key_with_many_signs_is_shown_as_it_stands_in_an_address():
    key = "sk-live/AbC+dEf=9x7Q2mZ"
    assert presentable(quote(key, safe=""), key) == "[hidden]"


@pytest.mark.parametrize(
    "words",
    ["The model `Qwen/Qwen2.5-7B-Instruct` does not exist.", "see http://127.0.0.1:8000/v1/models",
     "meta-llama/Llama-3.1-70B-Instruct", "max_completion_tokens must be at most 4096",
     "incomprehensibilities"],
)  # fmt: skip
def test_words_of_use_are_shown(words):
    assert presentable(words, KEY) == words
