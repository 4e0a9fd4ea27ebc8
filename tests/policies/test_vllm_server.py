"""Servers of adapters that cannot draw are refused in a sentence, and their keys are not shown."""

from functools import partial
from pathlib import Path

import language_models as lm
import pytest
import tiny_models
from adapter_engines import fake_server
from aiohttp import web
from language_models import refused

from nlhf_zoo.policies import LoRA, VLLMGenerator, VLLMServerGenerator

KEY = "sk-0123456789abcdef"


def server_policy(url, tmp_path, **arguments):
    generator = VLLMServerGenerator(url, str(tmp_path / "adapters"), **arguments)
    return tiny_models.make_policy(lm.tiny_folder("llama"), generator=generator)


@pytest.mark.parametrize(
    ("server", "arguments", "match"),
    [
        ({}, {"model": "other"}, "has no model 'other' .*it has base"),
        ({"may_load": False}, {}, "may not load adapters: start it with VLLM_ALLOW_RUNTIME_LORA_U"),
        ({"key": KEY}, {}, r"refuses the key \(HTTP 401\): give .*api_key_env"),
        ({}, {"api_key_env": "UNSET_KEY"}, "set the variable UNSET_KEY"),
        ({}, {"folder_at_server": "/elsewhere"}, "it does not see /elsewhere/nlhf-.*both see"),
    ],
)
def test_servers_that_cannot_draw_are_refused(tmp_path, server, arguments, match):
    with fake_server(lm.tiny_folder("llama"), **server) as (url, _, _):
        policy = server_policy(url, tmp_path, **arguments)
        refused(match, lambda: policy.capabilities)


def test_a_server_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nlhf_zoo.policies.language_model.vllm.http._PAUSE", 0.0)
    policy = server_policy("http://127.0.0.1:9/v1", tmp_path)
    refused(r"at http://127.0.0.1:9 is not there .*: start it", lambda: policy.capabilities)


def test_a_rank_that_a_server_does_not_take_is_refused(tmp_path):
    folder = lm.tiny_folder("llama")
    with fake_server(folder) as (url, _, _):
        generator = VLLMServerGenerator(url, str(tmp_path))
        policy = tiny_models.make_policy(folder, lora=LoRA(r=9), generator=generator)
        refused(r"LoRA rank 9 is greater than max_lora_rank 8", lambda: policy.capabilities)


def cut(choice):
    for part in (choice["token_ids"], *choice["logprobs"].values()):
        del part[2:]
    return web.json_response({"choices": [choice | {"finish_reason": "length"}]})


def other_end(choice):
    choice["token_ids"][-1] = 9
    return web.json_response({"choices": [choice | {"finish_reason": "stop"}]})


def without_tokens(choice):
    return web.json_response({"choices": [{"text": "", "logprobs": None}]})


def shouts(_):
    return web.json_response({"error": {"message": f"bad key {KEY}!"}}, status=500)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (cut, "ended a response after 2 of 4 tokens: raise its max_model_len"),
        (other_end, "at the token 9, which ends none of the policy's: .*--generation-config vllm"),
        (without_tokens, "without the tokens that it drew"),
        (shouts, r"HTTP 500: a message that holds a part of the key"),
    ],
)
def test_answers_that_are_no_draws_are_refused(tmp_path, monkeypatch, capfd, spoil, match):
    monkeypatch.setenv("FAKE_KEY", KEY)
    with fake_server(lm.tiny_folder("llama"), KEY, spoil=spoil) as (url, _, _):
        policy = server_policy(url, tmp_path, api_key_env="FAKE_KEY")
        said = refused(match, lambda: policy.capabilities)
    assert KEY not in said + "".join(capfd.readouterr())
    assert KEY not in repr(vars(policy.generator))


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://a/v1", "http://u:p@a/v1", "http://a/v1?key=1", "http://"]
)
def test_addresses_are_refused(url):
    said = refused("base_url of VLLMServerGenerator must be", VLLMServerGenerator, url, "f")
    assert "u:p" not in said
    assert "key=" not in said


def test_keys_are_not_given_as_arguments():
    said = refused(
        "the name of an environment", VLLMServerGenerator, "http://a", "f", api_key_env=KEY
    )
    assert KEY not in said


def test_numbers_out_of_range_are_refused():
    for made in (
        partial(VLLMGenerator, gpu_memory=0.0),
        partial(VLLMGenerator, max_gap=0.0),
        partial(VLLMServerGenerator, "http://a", "f", concurrency=0),
        partial(VLLMServerGenerator, "http://a", "f", timeout=0.0),
    ):
        with pytest.raises(ValueError, match=r"but|not"):
            made()


def test_the_folder_may_have_another_name_at_the_server(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with fake_server(lm.tiny_folder("llama")) as (url, engine, _):
        generator = VLLMServerGenerator(
            url, str(tmp_path / "real"), folder_at_server=f"{tmp_path}/link/"
        )
        policy = tiny_models.make_policy(lm.tiny_folder("llama"), generator=generator)
        lm.drawn(policy, lm.POLICY, num=1)
        paths = [entry[2] for entry in engine.log if entry[0] == "load"]
        assert all(Path(path).parent.parent == tmp_path / "link" for path in paths)
